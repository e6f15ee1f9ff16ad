// Package paths names the files and directories that k3s documents for its nodes.
package paths

import (
	"io/fs"
	"os"
	"path/filepath"
)

// Fixed places outside the data directory.
const (
	DefaultData      = "/var/lib/rancher/k3s"
	ConfigFile       = "/etc/rancher/k3s/config.yaml"
	Kubeconfig       = "/etc/rancher/k3s/k3s.yaml"
	Registries       = "/etc/rancher/k3s/registries.yaml"
	NodeDir          = "/etc/rancher/node"
	RunDir           = "/run/k3s"
	ContainerdState  = "/run/k3s/containerd"
	ContainerdSocket = "/run/k3s/containerd/containerd.sock"
	FlannelSubnet    = "/run/flannel/subnet.env"
)

// Data is the data directory of a node (option data-dir).
type Data string

// Path joins elements to the data directory.
func (d Data) Path(elements ...string) string {
	return filepath.Join(append([]string{string(d)}, elements...)...)
}

// Server joins elements to the directory of the server.
func (d Data) Server(elements ...string) string {
	return d.Path(append([]string{"server"}, elements...)...)
}

// TLS joins elements to the directory of the server's certificates.
func (d Data) TLS(elements ...string) string {
	return d.Server(append([]string{"tls"}, elements...)...)
}

// Agent joins elements to the directory of the agent.
func (d Data) Agent(elements ...string) string {
	return d.Path(append([]string{"agent"}, elements...)...)
}

// Bin is the directory of the unpacked tools.
func (d Data) Bin() string { return d.Path("data", "current", "bin") }

// WriteFile writes a file by rename, so that readers never see half of it.
// The file gets exactly the given mode, whatever the umask or an older file had.
func WriteFile(name string, content []byte, mode os.FileMode) error {
	temporary, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(temporary.Name())
	if err := temporary.Chmod(mode); err != nil {
		temporary.Close()
		return err
	}
	if _, err := temporary.Write(content); err != nil {
		temporary.Close()
		return err
	}
	if err := temporary.Close(); err != nil {
		return err
	}
	return os.Rename(temporary.Name(), name)
}

// MkdirAll makes a directory and its parents and gives the directory itself exactly the given mode.
func MkdirAll(name string, mode os.FileMode) error {
	if err := os.MkdirAll(name, mode); err != nil {
		return err
	}
	return os.Chmod(name, mode)
}

// CopyDirectory copies a directory of regular files and links with their modes: os.CopyFS would let others read keys.
func CopyDirectory(source, target string) error {
	return filepath.WalkDir(source, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(source, name)
		if err != nil {
			return err
		}
		info, err := os.Stat(name)
		if err != nil {
			return err
		}
		copied := filepath.Join(target, relative)
		if entry.IsDir() {
			return MkdirAll(copied, info.Mode().Perm())
		}
		content, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		return WriteFile(copied, content, info.Mode().Perm())
	})
}
