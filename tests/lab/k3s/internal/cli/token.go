package cli

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"slipway/tests/lab/k3s/internal/paths"
	"slipway/tests/lab/k3s/internal/token"
)

const (
	secretPrefix    = "bootstrap-token-"
	defaultTTL      = 24 * time.Hour
	defaultUsages   = "signing,authentication"
	defaultGroups   = "system:bootstrappers:k3s:default-node-token"
	usageKey        = "usage-bootstrap-"
	keyID           = "token-id"
	keySecret       = "token-secret"
	keyDescription  = "description"
	keyExpiration   = "expiration"
	keyGroups       = "auth-extra-groups"
	forever, never  = "<forever>", "<never>"
	commandTimeout  = 30 * time.Second
	outputText      = "text"
	outputJSON      = "json"
	tokenUsageLines = "usage: k3s token create|delete|generate|list|rotate [options]"
)

// tokenCommand runs `k3s token <verb>` and returns the exit code.
func tokenCommand(arguments []string) int {
	if len(arguments) == 0 {
		fmt.Println(tokenUsageLines)
		return 0
	}
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	verbs := map[string]func(context.Context, []string, io.Writer) error{
		"create": tokenCreate, "delete": tokenDelete, "list": tokenList, "rotate": tokenRotate,
		"generate": func(_ context.Context, _ []string, out io.Writer) error {
			_, err := fmt.Fprintln(out, token.RandomBootstrap())
			return err
		},
	}
	verb, known := verbs[arguments[0]]
	if !known {
		fmt.Fprintf(os.Stderr, "k3s token %s: unknown sub-command\n", arguments[0])
		return 1
	}
	if err := verb(ctx, arguments[1:], os.Stdout); err != nil {
		return fatal(err)
	}
	return 0
}

// tokenFlags makes the flags that the verbs share.
func tokenFlags(verb string) (flags *flag.FlagSet, data, kubeconfig *string) {
	flags = flag.NewFlagSet("k3s token "+verb, flag.ContinueOnError)
	data = flags.String("data-dir", dataDir(), "folder that holds the state of k3s")
	kubeconfig = flags.String("kubeconfig", "", "kubeconfig of the server")
	return flags, data, kubeconfig
}

func kubernetesClient(kubeconfig string) (kubernetes.Interface, error) {
	if kubeconfig == "" {
		kubeconfig = paths.Kubeconfig
	}
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, err
	}
	return kubernetes.NewForConfig(config)
}

func tokenCreate(ctx context.Context, arguments []string, out io.Writer) error {
	flags, data, kubeconfig := tokenFlags("create")
	ttl := flags.Duration("ttl", defaultTTL, "time to live, 0 for ever")
	description := flags.String("description", "", "what the token is for")
	usages := flags.String("usages", defaultUsages, "how it may be used")
	groups := flags.String("groups", defaultGroups, "groups that it authenticates as")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	text := flags.Arg(0)
	if text == "" {
		text = token.RandomBootstrap()
	}
	parsed, err := token.Parse(text)
	if err != nil {
		return err
	}
	if parsed.ID == "" {
		return fmt.Errorf("the bootstrap token %q was not of the form %q", text, "[a-z0-9]{6}.[a-z0-9]{16}")
	}
	ca, err := os.ReadFile(paths.Data(*data).TLS("server-ca.crt"))
	if err != nil {
		return err
	}
	client, err := kubernetesClient(*kubeconfig)
	if err != nil {
		return err
	}
	values := map[string]string{keyID: parsed.ID, keySecret: parsed.Password, keyGroups: *groups}
	for usage := range strings.SplitSeq(*usages, ",") {
		values[usageKey+usage] = "true"
	}
	if *description != "" {
		values[keyDescription] = *description
	}
	if *ttl > 0 {
		values[keyExpiration] = time.Now().Add(*ttl).UTC().Format(time.RFC3339)
	}
	_, err = client.CoreV1().Secrets(metav1.NamespaceSystem).Create(ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: secretPrefix + parsed.ID},
		Type:       corev1.SecretTypeBootstrapToken,
		StringData: values,
	}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	parsed.Hash = token.HashCA(ca)
	_, err = fmt.Fprintln(out, parsed.Secure())
	return err
}

func tokenDelete(ctx context.Context, arguments []string, out io.Writer) error {
	flags, _, kubeconfig := tokenFlags("delete")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	if flags.NArg() == 0 {
		return fmt.Errorf("missing token; 'k3s token delete' is missing a token id or token")
	}
	client, err := kubernetesClient(*kubeconfig)
	if err != nil {
		return err
	}
	for _, name := range flags.Args() {
		id, _, _ := strings.Cut(name, ".")
		if err := client.CoreV1().Secrets(metav1.NamespaceSystem).Delete(ctx, secretPrefix+id, metav1.DeleteOptions{}); err != nil {
			return err
		}
		fmt.Fprintf(out, "bootstrap token %q deleted\n", id)
	}
	return nil
}

// listed is a token as `k3s token list -o json` prints it.
type listed struct {
	Token       string   `json:"token"`
	Description string   `json:"description,omitempty"`
	Expires     string   `json:"expires,omitempty"`
	Usages      []string `json:"usages,omitempty"`
	Groups      []string `json:"groups,omitempty"`
}

func tokenList(ctx context.Context, arguments []string, out io.Writer) error {
	flags, _, kubeconfig := tokenFlags("list")
	format := flags.String("output", outputText, "text or json")
	flags.StringVar(format, "o", outputText, "text or json")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	if *format != outputText && *format != outputJSON {
		return fmt.Errorf("invalid output format %q", *format)
	}
	client, err := kubernetesClient(*kubeconfig)
	if err != nil {
		return err
	}
	found, err := client.CoreV1().Secrets(metav1.NamespaceSystem).List(ctx, metav1.ListOptions{FieldSelector: "type=" + string(corev1.SecretTypeBootstrapToken)})
	if err != nil {
		return err
	}
	var all []listed
	for _, secret := range found.Items {
		entry := listed{
			Token: string(secret.Data[keyID]), Description: string(secret.Data[keyDescription]), Expires: string(secret.Data[keyExpiration]),
			Groups: strings.Split(string(secret.Data[keyGroups]), ","),
		}
		for _, usage := range strings.Split(defaultUsages, ",") {
			if string(secret.Data[usageKey+usage]) == "true" {
				entry.Usages = append(entry.Usages, usage)
			}
		}
		all = append(all, entry)
	}
	if *format == outputJSON {
		return json.NewEncoder(out).Encode(all)
	}
	table := tabwriter.NewWriter(out, 10, 4, 3, ' ', 0)
	fmt.Fprintln(table, "TOKEN\tTTL\tEXPIRES\tUSAGES\tDESCRIPTION\tEXTRA GROUPS")
	for _, entry := range all {
		ttl, expires := forever, never
		if end, err := time.Parse(time.RFC3339, entry.Expires); err == nil {
			ttl, expires = time.Until(end).Round(time.Second).String(), entry.Expires
		}
		description := entry.Description
		if description == "" {
			description = "<none>"
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\n", entry.Token, ttl, expires, strings.Join(entry.Usages, ","), description, strings.Join(entry.Groups, ","))
	}
	return table.Flush()
}
