package main

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestMain is the stream, in the processes that the story starts.
func TestMain(m *testing.M) {
	if slices.Contains(os.Args, "-count") {
		main()
		return
	}
	os.Exit(m.Run())
}

func TestStory(t *testing.T) {
	var out strings.Builder
	require.NoError(t, run(&out, os.Args[0]), "%s", &out)
	require.Contains(t, out.String(), "Every check passed.")
}
