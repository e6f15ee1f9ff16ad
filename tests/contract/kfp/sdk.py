"""One act of the unmodified SDK, in its own environment: `sdk.py HOST ACT [ARGUMENT...]` prints what came of it as JSON.

run RUNS                      starts compiled pipelines, a JSON list of [file, parameters, caching]; the runs' ids
wait ID SECONDS               the run when it is final
terminate ID, retry ID
"""

import json
import sys

import kfp


def main(host: str, act: str, *arguments: str) -> object:
    """Do it."""
    client = kfp.Client(host=host, ui_host=host)
    if act == "run":
        return [
            client.create_run_from_pipeline_package(
                file, arguments=parameters, experiment_name="contract", enable_caching=caching
            ).run_id
            for file, parameters, caching in json.loads(arguments[0])
        ]
    if act == "wait":
        return client.wait_for_run_completion(arguments[0], timeout=int(arguments[1]), sleep_duration=2).to_dict()
    if act == "terminate":
        return client.terminate_run(arguments[0])
    if act == "retry":
        return client._run_api.run_service_retry_run(arguments[0])
    raise SystemExit(__doc__)


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:]), default=str))
