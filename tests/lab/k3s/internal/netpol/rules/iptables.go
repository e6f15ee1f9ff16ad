package rules

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Chains of the table filter. All names are among those that k3s' killall script and our own removal of k3s clear away.
const (
	inputChain   = "KUBE-ROUTER-INPUT"   // pods that call their own node
	forwardChain = "KUBE-ROUTER-FORWARD" // everything else, after the addresses of Services were translated
	podChain     = "KUBE-POD-FW-"        // with the hash of its content: pods with the same rules share it
)

// hooks are the built-in chains that jump to ours.
var hooks = map[string]string{"FORWARD": forwardChain, "INPUT": inputChain}

const (
	maxComment = 200 // iptables takes 255 bytes
	hashLength = 16  // names of chains have at most 28 bytes
)

// Chain is a chain of ours with its rules.
type Chain struct {
	Name  string
	Rules []string
}

// Chains writes what the pods are allowed. A packet that may pass returns to the built-in chain, so that other rules of
// the node still see it, and so that it meets the other pod's rules if both are on this node.
func Chains(pods []Pod) []Chain {
	contents := map[string][]string{}
	var outbound, inbound []string
	for _, pod := range pods {
		// Nothing keeps a pod from itself, also when it calls itself through a Service.
		source, target := fmt.Sprintf("-s %s", host(pod.Address)), fmt.Sprintf("-d %s", host(pod.Address))
		if pod.Egress.Isolated {
			name := content(contents, pod.Egress.Allowed, "-d")
			outbound = append(outbound, jump(source+" ! "+target, name, "from "+pod.Name))
		}
		if pod.Ingress.Isolated {
			name := content(contents, pod.Ingress.Allowed, "-s")
			inbound = append(inbound, jump("! "+source+" "+target, name, "to "+pod.Name))
		}
	}
	chains := []Chain{top(inputChain, outbound), top(forwardChain, slices.Concat(outbound, inbound))}
	for _, name := range slices.Sorted(maps.Keys(contents)) {
		chains = append(chains, Chain{name, contents[name]})
	}
	return chains
}

// top is a chain that built-in ones jump to. Its first rule carries a hash by which Plan finds out what is in force.
func top(name string, jumps []string) Chain {
	return Chain{name, slices.Concat([]string{
		// Who was allowed to connect is answered.
		fmt.Sprintf(`-m comment --comment "netpol %s" -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN`, hash(jumps)),
		// Policies are about TCP, UDP and SCTP; k3s' controller lets pings pass.
		"-p icmp -m icmp --icmp-type 8 -j RETURN",
	}, jumps)}
}

func jump(match, chain, comment string) string {
	return fmt.Sprintf(`%s -m comment --comment "%s" -j %s`, match, comment[:min(len(comment), maxComment)], chain)
}

// content notes the rules for one side of a pod and returns the name of their chain.
func content(contents map[string][]string, allowed []Allow, peer string) string {
	var lines []string
	for _, a := range allowed {
		var words []string
		if a.Peer != everywhere {
			words = append(words, peer, a.Peer.String())
		}
		if a.Protocol != "" {
			protocol := strings.ToLower(string(a.Protocol))
			words = append(words, "-p", protocol)
			switch {
			case a.First == 0:
			case a.First == a.Last:
				words = append(words, "-m", protocol, "--dport", fmt.Sprint(a.First))
			default:
				words = append(words, "-m", protocol, "--dport", fmt.Sprintf("%d:%d", a.First, a.Last))
			}
		}
		lines = append(lines, strings.Join(append(words, "-j RETURN"), " "))
	}
	lines = append(lines, "-j REJECT --reject-with icmp-port-unreachable")
	name := podChain + hash(lines)
	contents[name] = lines
	return name
}

func hash(lines []string) string {
	sum := sha256.Sum256([]byte(strings.Join(lines, "\n")))
	return base32.StdEncoding.EncodeToString(sum[:])[:hashLength]
}

// Plan compares chains with what iptables-save says of the table filter and returns what iptables-restore --noflush has
// to be given: one transaction, or nothing if all is in force.
func Plan(saved string, chains []Chain) string {
	present := parse(saved)
	wanted := map[string]bool{}
	var head, body []string
	for _, chain := range chains {
		wanted[chain.Name] = true
		if inForce(present, chain) {
			continue
		}
		head = append(head, fmt.Sprintf(":%s - [0:0]", chain.Name))
		for _, rule := range chain.Rules {
			body = append(body, "-A "+chain.Name+" "+rule)
		}
	}
	for _, builtin := range slices.Sorted(maps.Keys(hooks)) {
		body = append(body, hook(present[builtin], builtin, hooks[builtin])...)
	}
	for _, name := range slices.Sorted(maps.Keys(present)) {
		if strings.HasPrefix(name, podChain) && !wanted[name] {
			head = append(head, fmt.Sprintf(":%s - [0:0]", name))
			body = append(body, "-X "+name)
		}
	}
	if len(head)+len(body) == 0 {
		return ""
	}
	return strings.Join(slices.Concat([]string{"*filter"}, head, body, []string{"COMMIT", ""}), "\n")
}

// parse returns the rules of each chain, without its name.
func parse(saved string) map[string][]string {
	present := map[string][]string{}
	for line := range strings.Lines(saved) {
		line = strings.TrimSpace(line)
		if name, found := strings.CutPrefix(line, ":"); found {
			name, _, _ = strings.Cut(name, " ")
			present[name] = nil
		} else if rest, found := strings.CutPrefix(line, "-A "); found {
			name, rule, _ := strings.Cut(rest, " ")
			present[name] = append(present[name], rule)
		}
	}
	return present
}

// inForce compares by what iptables does not rewrite: the number of rules and the hash, which is in the name of a pod's
// chain and in the first rule of the others.
func inForce(present map[string][]string, chain Chain) bool {
	rules, found := present[chain.Name]
	if !found || len(rules) != len(chain.Rules) {
		return false
	}
	_, mark, named := strings.Cut(chain.Rules[0], `--comment "netpol `)
	mark, _, _ = strings.Cut(mark, `"`)
	return !named || strings.Contains(rules[0], mark)
}

// hook makes our jump the first rule of a built-in chain: kube-proxy's rules there accept packets.
func hook(rules []string, builtin, target string) []string {
	ours := func(rule string) bool { return strings.HasSuffix(rule, "-j "+target) }
	count := 0
	for _, rule := range rules {
		if ours(rule) {
			count++
		}
	}
	if count == 1 && ours(rules[0]) {
		return nil
	}
	var lines []string
	for _, rule := range rules {
		if ours(rule) {
			lines = append(lines, "-D "+builtin+" "+rule)
		}
	}
	return append(lines, fmt.Sprintf(`-I %s 1 -m comment --comment "kube-router netpol" -j %s`, builtin, target))
}

// Describe counts what is enforced, for the log.
func Describe(pods []Pod) string {
	ingress, egress := 0, 0
	for _, pod := range pods {
		if pod.Ingress.Isolated {
			ingress++
		}
		if pod.Egress.Isolated {
			egress++
		}
	}
	return fmt.Sprintf("%d pods isolated for ingress, %d for egress", ingress, egress)
}
