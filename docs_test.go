package replicator_test

import (
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestPromisesHaveTests looks for the tests that docs/ARCHITECTURE.md names: every
// promise has some, and all that it names are there.
func TestPromisesHaveTests(t *testing.T) {
	tests := slices.Collect(maps.Keys(testSources(t)))
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

// TestFaultsHaveTests looks for the tests that docs/FAULTS.md names: every fault has
// some, all that it names are there, and those that are known to fail are told of as such.
func TestFaultsHaveTests(t *testing.T) {
	tests := testSources(t)
	text, err := os.ReadFile("docs/FAULTS.md")
	require.NoError(t, err)
	faults := regexp.MustCompile(`(?m)^\| (.+) \| (.+) \| (.+) \|$`).FindAllStringSubmatch(string(text), -1)
	require.Greater(t, len(faults), 50)
	for _, f := range faults {
		named := regexp.MustCompile("`(Test\\w+)`").FindAllStringSubmatch(f[3], -1)
		if strings.HasPrefix(f[1], "what happen") {
			continue // the head of a table
		}
		require.NotEmpty(t, named, "no test holds: %s", f[1])
		for _, n := range named {
			_, found := tests[n[1]]
			require.True(t, found, "there is no test %s, for: %s", n[1], f[1])
		}
	}
	_, rest, found := strings.Cut(string(text), "## Known, and not mended\n")
	require.True(t, found)
	unmended, _, _ := strings.Cut(rest, "\n## ")
	for check := range knownFailures {
		name, _, _ := strings.Cut(check, ": ")
		require.Contains(t, unmended, "`"+name+"`", "a known failure that docs/FAULTS.md does not tell of")
	}
	for _, n := range regexp.MustCompile("`(Test\\w+)`").FindAllStringSubmatch(unmended, -1) {
		require.True(t, n[1] == "TestSimulation" || knownFailures[n[1]] != "", "%s is not known to fail", n[1])
	}
}
