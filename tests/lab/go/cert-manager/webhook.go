package main

import (
	"context"

	"github.com/cert-manager/cert-manager/internal/apis/config/webhook/validation"
	"github.com/cert-manager/cert-manager/internal/webhook"
	logf "github.com/cert-manager/cert-manager/pkg/logs"
	"github.com/cert-manager/cert-manager/pkg/webhook/configfile"
	"github.com/cert-manager/cert-manager/pkg/webhook/options"
	"github.com/spf13/pflag"
)

func runWebhook(ctx context.Context, args []string) error {
	c, err := options.NewWebhookConfiguration()
	if err != nil {
		return err
	}
	err = read("cert-manager-webhook", args, func(flags *pflag.FlagSet) {
		options.AddConfigFlags(flags, c)
	}, func(file string) error {
		found := configfile.New()
		if err := loadFile(file, found); err != nil {
			return err
		}
		found.Config.DeepCopyInto(c)
		return nil
	})
	if err != nil {
		return err
	}
	if err := apply(validation.ValidateWebhookConfiguration(c, nil), c.FeatureGates, &c.Logging); err != nil {
		return err
	}
	server, err := webhook.NewCertManagerWebhookServer(logf.FromContext(ctx), *c)
	if err != nil {
		return err
	}
	return server.Run(ctx)
}
