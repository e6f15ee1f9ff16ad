package args

import (
	"slices"
	"testing"
)

func TestMerge(t *testing.T) {
	defaults := map[string]string{"a": "1", "b": "x"}
	for name, test := range map[string]struct {
		user []string
		want []string
	}{
		"defaults alone, sorted":        {nil, []string{"--a=1", "--b=x"}},
		"a user's flag replaces":        {[]string{"a=2"}, []string{"--a=2", "--b=x"}},
		"dashes are accepted":           {[]string{"--a=2"}, []string{"--a=2", "--b=x"}},
		"plus adds after the default":   {[]string{"b+=y"}, []string{"--a=1", "--b=x", "--b=y"}},
		"minus adds before the default": {[]string{"b-=y"}, []string{"--a=1", "--b=y", "--b=x"}},
		"repeated flags are all kept":   {[]string{"a=2", "a=3"}, []string{"--a=2", "--a=3", "--b=x"}},
		"values may hold equal signs":   {[]string{"c=K=V"}, []string{"--a=1", "--b=x", "--c=K=V"}},
		"empty values are kept":         {[]string{"a="}, []string{"--a=", "--b=x"}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := Merge(defaults, test.user); !slices.Equal(got, test.want) {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}
