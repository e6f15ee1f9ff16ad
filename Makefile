# Names only; bin/slipway holds what they do.
# SITE=lab|<directory in inventories>  SOURCE=registries|upstream  BUNDLE=<directory>  ANSIBLE_ARGS=...  BENCH=<parts>  K3S_ANSIBLE=<directory>
SITE ?= lab
export SITE SOURCE BUNDLE ANSIBLE_ARGS

.PHONY: help up verify doctor test down lint bundle bench lock unit scenario e2e
help:
	@bin/slipway help
up verify doctor test down lint bundle bench lock unit scenario e2e:
	@bin/slipway $@
