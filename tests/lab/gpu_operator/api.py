"""Messages of the kubelet's device plugin API v1beta1, as far as they are used here.

Source: k8s.io/kubelet v0.35, pkg/apis/deviceplugin/v1beta1/api.proto; each field below is its line there. A field left out
is one that a receiver may ignore and a sender leave empty.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

VERSION = "v1beta1"
HEALTHY, UNHEALTHY = "Healthy", "Unhealthy"

_FIELDS = {
    "Empty": [],
    "DevicePluginOptions": ["bool get_preferred_allocation_available = 2"],
    "RegisterRequest": [
        "string version = 1",
        "string endpoint = 2",
        "string resource_name = 3",
        "DevicePluginOptions options = 4",
    ],
    "Device": ["string ID = 1", "string health = 2"],
    "ListAndWatchResponse": ["repeated Device devices = 1"],
    "ContainerPreferredAllocationRequest": [
        "repeated string available_deviceIDs = 1",
        "repeated string must_include_deviceIDs = 2",
        "int32 allocation_size = 3",
    ],
    "PreferredAllocationRequest": ["repeated ContainerPreferredAllocationRequest container_requests = 1"],
    "ContainerPreferredAllocationResponse": ["repeated string deviceIDs = 1"],
    "PreferredAllocationResponse": ["repeated ContainerPreferredAllocationResponse container_responses = 1"],
    "ContainerAllocateRequest": ["repeated string devices_ids = 1"],
    "AllocateRequest": ["repeated ContainerAllocateRequest container_requests = 1"],
    "Mount": ["string container_path = 1", "string host_path = 2", "bool read_only = 3"],
    "CDIDevice": ["string name = 1"],
    "ContainerAllocateResponse": [
        "map<string,string> envs = 1",
        "repeated Mount mounts = 2",
        "repeated CDIDevice cdi_devices = 5",
    ],
    "AllocateResponse": ["repeated ContainerAllocateResponse container_responses = 1"],
}
_FIELD = descriptor_pb2.FieldDescriptorProto
_SCALARS = {"string": _FIELD.TYPE_STRING, "bool": _FIELD.TYPE_BOOL, "int32": _FIELD.TYPE_INT32}


def _add_field(message: Any, line: str) -> None:
    *label, kind, name, _, number = line.split()
    field = message.field.add(name=name, number=int(number), type=_FIELD.TYPE_MESSAGE, type_name=f".{VERSION}.{kind}")
    field.label = _FIELD.LABEL_REPEATED if label else _FIELD.LABEL_OPTIONAL
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
        field.ClearField("type_name")
    elif kind == "map<string,string>":
        # A map is a list of pairs, with a message of its own for the pair.
        pair = message.nested_type.add(name=f"{name.capitalize()}Entry")
        pair.options.map_entry = True
        _add_field(pair, "string key = 1")
        _add_field(pair, "string value = 2")
        field.label, field.type_name = _FIELD.LABEL_REPEATED, f".{VERSION}.{message.name}.{pair.name}"


def _classes() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="deviceplugin/v1beta1/api.proto", package=VERSION, syntax="proto3")
    for name, lines in _FIELDS.items():
        message = file.message_type.add(name=name)
        for line in lines:
            _add_field(message, line)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{VERSION}.{name}")) for name in _FIELDS}


# Class of each message by its name: MESSAGES["Empty"]().
MESSAGES = _classes()
