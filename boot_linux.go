package replicator

import (
	"os"
	"strings"
)

// machineBootID names the time since the machine was booted, in which writes
// that were not synced are still there; "" where there is no telling.
func machineBootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
