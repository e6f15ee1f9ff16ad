package rules

import (
	"regexp"
	"slices"
	"strings"
	"testing"
)

const bare = `*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
COMMIT
`

// restored is what iptables-save would show after a plan; good enough for plans that make or remove whole chains.
func restored(t *testing.T, saved, plan string) string {
	t.Helper()
	chains := parse(saved)
	for line := range strings.Lines(plan) {
		line = strings.TrimSpace(line)
		verb, rest, _ := strings.Cut(line, " ")
		name, rule, _ := strings.Cut(rest, " ")
		switch {
		case strings.HasPrefix(line, ":"):
			chains[strings.TrimPrefix(verb, ":")] = nil
		case verb == "-A":
			chains[name] = append(chains[name], rule)
		case verb == "-I":
			chains[name] = append([]string{strings.TrimPrefix(rule, "1 ")}, chains[name]...)
		case verb == "-D":
			at := slices.Index(chains[name], rule)
			if at < 0 {
				t.Fatalf("%s: no such rule", line)
			}
			chains[name] = slices.Delete(chains[name], at, at+1)
		case verb == "-X":
			delete(chains, name)
		}
	}
	var text strings.Builder
	for name, lines := range chains {
		text.WriteString(":" + name + " - [0:0]\n")
		for _, line := range lines {
			text.WriteString("-A " + name + " " + line + "\n")
		}
	}
	return text.String()
}

func chainsOf(t *testing.T, policies ...string) []Chain {
	t.Helper()
	input := world()
	input.Node = "node-1"
	add(t, &input, policies...)
	return Chains(Build(input))
}

func TestText(t *testing.T) {
	chains := chainsOf(t,
		`x: {podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}], ports: [{port: 80, endPort: 90}, {port: 53, protocol: UDP}, {protocol: SCTP}]}]}`,
		`x: {podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0}}], ports: [{port: 443}]}]}`)
	names := []string{chains[2].Name, chains[3].Name}
	if strings.Contains(chains[2].Rules[0], "-s ") {
		slices.Reverse(names)
	}
	want := map[string]string{
		inputChain: `-m comment --comment "netpol HASH" -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN
-p icmp -m icmp --icmp-type 8 -j RETURN
-s 10.42.0.10/32 ! -d 10.42.0.10/32 -m comment --comment "from x/a" -j ` + names[0],
		forwardChain: `-m comment --comment "netpol HASH" -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN
-p icmp -m icmp --icmp-type 8 -j RETURN
-s 10.42.0.10/32 ! -d 10.42.0.10/32 -m comment --comment "from x/a" -j ` + names[0] + `
! -s 10.42.0.10/32 -d 10.42.0.10/32 -m comment --comment "to x/a" -j ` + names[1],
		names[0]: `-p tcp -m tcp --dport 443 -j RETURN
-j REJECT --reject-with icmp-port-unreachable`,
		names[1]: `-s 10.42.0.11/32 -p sctp -j RETURN
-s 10.42.0.11/32 -p tcp -m tcp --dport 80:90 -j RETURN
-s 10.42.0.11/32 -p udp -m udp --dport 53 -j RETURN
-j REJECT --reject-with icmp-port-unreachable`,
	}
	if len(chains) != len(want) {
		t.Fatal(chains)
	}
	hashes := regexp.MustCompile(`netpol [A-Z2-7]{16}"`)
	for _, chain := range chains {
		if got := hashes.ReplaceAllString(strings.Join(chain.Rules, "\n"), `netpol HASH"`); got != want[chain.Name] {
			t.Errorf("%s:\n%s\nnot\n%s", chain.Name, got, want[chain.Name])
		}
		if len(chain.Name) > 28 {
			t.Error("too long for iptables:", chain.Name)
		}
	}
}

// Pods of the same rules share a chain, so that a large deployment costs one rule for each pod.
func TestSharedChains(t *testing.T) {
	chains := chainsOf(t, `x: {podSelector: {}}`)
	if len(chains) != 3 || len(chains[1].Rules) != 2+2 {
		t.Error(chains)
	}
}

func TestPlan(t *testing.T) {
	closed := chainsOf(t, `x: {podSelector: {}}`)
	open := chainsOf(t, `x: {podSelector: {matchLabels: {pod: a}}, ingress: [{}]}`)
	none := chainsOf(t)

	plan := Plan(bare, closed)
	if !strings.HasPrefix(plan, "*filter\n") || !strings.HasSuffix(plan, "\nCOMMIT\n") || strings.Count(plan, "*filter") != 1 {
		t.Error("not one transaction:", plan)
	}
	state := restored(t, bare, plan)
	if first := parse(state)["FORWARD"][0]; !strings.HasSuffix(first, "-j "+forwardChain) {
		t.Error("not the first rule:", first)
	}
	if again := Plan(state, closed); again != "" {
		t.Error("nothing changed:", again)
	}

	state = restored(t, state, Plan(state, open))
	if again := Plan(state, open); again != "" {
		t.Error("nothing changed:", again)
	}
	if _, left := parse(state)[closed[2].Name]; left {
		t.Error("a chain that nobody needs is left")
	}
	state = restored(t, state, Plan(state, none))
	for name := range parse(state) {
		if strings.HasPrefix(name, podChain) {
			t.Error("left without policies:", name)
		}
	}
}

func TestPlanRepairs(t *testing.T) {
	chains := chainsOf(t, `x: {podSelector: {}}`)
	good := restored(t, bare, Plan(bare, chains))
	for name, spoil := range map[string]func(map[string][]string){
		"another rule is first":     func(c map[string][]string) { slices.Reverse(c["FORWARD"]) },
		"the jump is there twice":   func(c map[string][]string) { c["INPUT"] = append(c["INPUT"], c["INPUT"][0]) },
		"the jump is gone":          func(c map[string][]string) { c["INPUT"] = nil },
		"our chain was flushed":     func(c map[string][]string) { c[forwardChain] = nil },
		"our chain is gone":         func(c map[string][]string) { delete(c, inputChain) },
		"a pod's chain was flushed": func(c map[string][]string) { c[chains[2].Name] = nil },
	} {
		broken := parse(good)
		spoil(broken)
		var text strings.Builder
		for chain, lines := range broken {
			text.WriteString(":" + chain + " - [0:0]\n")
			for _, line := range lines {
				text.WriteString("-A " + chain + " " + line + "\n")
			}
		}
		plan := Plan(text.String(), chains)
		if plan == "" {
			t.Error("not seen:", name)
		}
		if again := Plan(restored(t, text.String(), plan), chains); again != "" {
			t.Errorf("%s: not repaired: %s", name, again)
		}
	}
}

// A name may be longer than a comment of iptables.
func TestLongNames(t *testing.T) {
	input := world()
	input.Node = "node-1"
	input.Pods[0].Name = strings.Repeat("n", 253)
	add(t, &input, `x: {podSelector: {}}`)
	for _, rule := range Chains(Build(input))[1].Rules {
		_, comment, _ := strings.Cut(rule, `--comment "`)
		comment, _, _ = strings.Cut(comment, `"`)
		if len(comment) > 255 {
			t.Error(comment)
		}
	}
}
