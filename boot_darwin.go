package replicator

import "syscall"

// machineBootID names the time since the machine was booted, in which writes
// that were not synced are still there; "" where there is no telling.
func machineBootID() string {
	id, err := syscall.Sysctl("kern.bootsessionuuid")
	if err != nil {
		return ""
	}
	return id
}
