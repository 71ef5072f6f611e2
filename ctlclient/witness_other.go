//go:build !linux

package ctlclient

import "os"

// identityOf knows nothing of a file here: a folder that was put back as a
// whole is not noticed before the control center answers.
func identityOf(*os.File) (inode uint64, birth int64, err error) { return 0, 0, nil }
