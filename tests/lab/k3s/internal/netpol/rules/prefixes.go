package rules

import (
	"net/netip"

	networkingv1 "k8s.io/api/networking/v1"
)

func host(address netip.Addr) netip.Prefix { return netip.PrefixFrom(address, address.BitLen()) }

// block is an ipBlock as the prefixes that its exceptions leave. IPv6 is not part of the stand-in, so it means nothing.
func block(ipBlock *networkingv1.IPBlock) []netip.Prefix {
	prefix, err := netip.ParsePrefix(ipBlock.CIDR)
	if err != nil || !prefix.Addr().Is4() {
		return nil
	}
	left := []netip.Prefix{prefix.Masked()}
	for _, text := range ipBlock.Except {
		exception, err := netip.ParsePrefix(text)
		if err != nil {
			continue
		}
		var next []netip.Prefix
		for _, prefix := range left {
			next = append(next, without(prefix, exception.Masked())...)
		}
		left = next
	}
	return left
}

// without is a prefix less another one: nothing, all of it, or the halves beside the way down to the exception.
func without(prefix, exception netip.Prefix) []netip.Prefix {
	if !prefix.Overlaps(exception) {
		return []netip.Prefix{prefix}
	}
	if exception.Bits() <= prefix.Bits() {
		return nil
	}
	lower := netip.PrefixFrom(prefix.Addr(), prefix.Bits()+1)
	bytes := prefix.Addr().As4()
	bytes[prefix.Bits()/8] |= 1 << (7 - prefix.Bits()%8)
	upper := netip.PrefixFrom(netip.AddrFrom4(bytes), prefix.Bits()+1)
	return append(without(lower, exception), without(upper, exception)...)
}
