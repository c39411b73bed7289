package main

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestStory(t *testing.T) {
	var out strings.Builder
	require.NoError(t, run(&out), "%s", &out)
	require.Contains(t, out.String(), "Every check passed.")
}
