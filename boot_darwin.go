package replicator

import "syscall"

// machineBootID returns an id of the current boot of the machine, or "" if it is unknown.
// Unsynced writes survive until the next boot.
func machineBootID() string {
	id, err := syscall.Sysctl("kern.bootsessionuuid")
	if err != nil {
		return ""
	}
	return id
}
