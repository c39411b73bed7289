package replicator

import (
	"os"
	"strings"
)

// machineBootID returns an id of the current boot of the machine, or "" if it is unknown.
// Unsynced writes survive until the next boot.
func machineBootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
