package replicator_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestPromisesHaveTests looks for the tests that docs/ARCHITECTURE.md names: every
// promise has some, and all that it names are there.
func TestPromisesHaveTests(t *testing.T) {
	files, err := filepath.Glob("*_test.go")
	require.NoError(t, err)
	var tests []string
	for _, file := range files {
		source, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, f := range regexp.MustCompile(`(?m)^func (Test\w+)\(`).FindAllSubmatch(source, -1) {
			tests = append(tests, string(f[1]))
		}
	}
	text, err := os.ReadFile("docs/ARCHITECTURE.md")
	require.NoError(t, err)
	promises := regexp.MustCompile(`(?m)^\| \d+ \| \*\*(.+)\*\*: .+ \| .+ \| (.*) \|$`).FindAllStringSubmatch(string(text), -1)
	require.GreaterOrEqual(t, len(promises), 15)
	for _, p := range promises {
		promise, named := p[1], regexp.MustCompile("`(Test\\w+)(…?)`").FindAllStringSubmatch(p[2], -1)
		require.NotEmpty(t, named, "%s has no test", promise)
		for _, n := range named {
			require.True(t, slices.ContainsFunc(tests, func(name string) bool {
				return name == n[1] || n[2] != "" && strings.HasPrefix(name, n[1])
			}), "%s: there is no test %s", promise, n[0])
		}
	}
}
