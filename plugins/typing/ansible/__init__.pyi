# Ansible ships no types. These stubs hold what the plugins use of it, and lead mypy from
# `ansible.module_utils.slipway`, the name under which Ansible imports it, to the code itself.
