package bpf

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"go.uber.org/zap"
)

// layout is the version of the maps' meaning. Another one has a folder of its
// own, so that an old program never reads new maps.
const layout = "v3"

func (c *Config) folder() string { return filepath.Join(c.PinDir, "yumen", layout, c.Interface) }

// folders returns where pins of the interface may be: those of this layout, and
// those of others that are there.
func (c *Config) folders() []string {
	all := []string{c.folder()}
	others, _ := filepath.Glob(filepath.Join(c.PinDir, "yumen", "v*", c.Interface)) // the pattern is sound
	for _, dir := range others {
		if dir != all[0] {
			all = append(all, dir)
		}
	}
	return all
}

// takeOver looks for a link that is pinned. One of another layout goes on with
// the program and the maps that it has until [Guard.Attach].
func (g *Guard) takeOver() error {
	for _, dir := range g.cfg.folders() {
		l, err := link.LoadPinnedLink(filepath.Join(dir, "link"), nil)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("take over pinned guard: %w", err)
		}
		// An interface that was made anew has lost its program; the pin is a shell.
		if ifc, err := net.InterfaceByName(g.cfg.Interface); err != nil || ifindexOf(l) != ifc.Index {
			g.log.Warn("pinned guard hangs on an interface that is gone", zap.String("interface", g.cfg.Interface))
			if err := errors.Join(l.Unpin(), l.Close()); err != nil {
				return fmt.Errorf("remove pin of a gone interface: %w", err)
			}
			continue
		}
		g.link, g.pinned, g.mode = l, true, Auto
		if dir != g.cfg.folder() {
			g.former = dir
			g.log.Info("pinned guard of another version is taken over, what was open opens anew", zap.String("pins", dir))
		}
		return nil
	}
	return nil
}

func ifindexOf(l link.Link) int {
	info, err := l.Info()
	if err != nil || info.XDP() == nil {
		return 0
	}
	return int(info.XDP().Ifindex)
}

// pinnedMaps returns the maps that are pinned in dir.
func pinnedMaps(spec *ebpf.CollectionSpec, dir string) (map[string]*ebpf.Map, error) {
	old := map[string]*ebpf.Map{}
	for name := range spec.Maps {
		if name[0] == '.' { // data sections belong to one program
			continue
		}
		m, err := ebpf.LoadPinnedMap(filepath.Join(dir, name), nil)
		switch {
		case err == nil:
			old[name] = m
		case errors.Is(err, os.ErrNotExist), errors.Is(err, os.ErrPermission), errors.Is(err, ebpf.ErrNotSupported):
		default:
			closeAll(old)
			return nil, fmt.Errorf("open pinned guard map: %w", err)
		}
	}
	return old, nil
}

// Prepare makes the folder of pins, for which [Guard.Pin] may lack the right
// later.
func (g *Guard) Prepare() error {
	if err := ensureBPFFS(g.cfg.PinDir); err != nil {
		return err
	}
	if err := os.MkdirAll(g.cfg.folder(), 0o700); err != nil {
		return fmt.Errorf("make folder of pins: %w", err)
	}
	return nil
}

// Pin keeps the attached guard and its maps beyond this process.
func (g *Guard) Pin() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.link == nil {
		return errors.New("pin guard: it is not attached")
	}
	return g.pin()
}

func (g *Guard) pin() error {
	if err := ensureBPFFS(g.cfg.PinDir); err != nil {
		return err
	}
	dir := g.cfg.folder()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("pin guard: %w", err)
	}
	for name, m := range g.maps {
		if name[0] == '.' {
			continue
		}
		path := filepath.Join(dir, name)
		if same(m, path) {
			continue
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("pin guard: %w", err)
		}
		clone, err := m.Clone()
		if err != nil {
			return fmt.Errorf("pin guard map %s: %w", name, err)
		}
		err = clone.Pin(path)
		clone.Close()
		if err != nil {
			return fmt.Errorf("pin guard map %s: %w", name, err)
		}
	}
	if g.pinned && g.former == "" {
		return nil
	}
	if err := g.link.Pin(filepath.Join(dir, "link")); err != nil {
		return fmt.Errorf("pin guard link: %w", err)
	}
	g.pinned = true
	if g.former != "" {
		if err := os.RemoveAll(g.former); err != nil {
			return fmt.Errorf("remove pins of before: %w", err)
		}
		g.former = ""
	}
	return nil
}

// same reports whether path is a pin of m.
func same(m *ebpf.Map, path string) bool {
	old, err := ebpf.LoadPinnedMap(path, nil)
	if err != nil {
		return false
	}
	defer old.Close()
	a, err := m.Info()
	if err != nil {
		return false
	}
	b, err := old.Info()
	if err != nil {
		return false
	}
	x, _ := a.ID()
	y, _ := b.ID()
	return x == y
}

// Remove takes a pinned guard off without its process: the way back when the
// gateway does not run. It reports whether there was one.
func Remove(pinDir, iface string) (bool, error) {
	cfg := Config{Interface: iface, PinDir: pinDir}
	cfg.Complete()
	if iface == "" || iface != filepath.Base(iface) || iface == "." || iface == ".." {
		return false, fmt.Errorf("remove guard: %q is no interface", iface)
	}
	for _, dir := range cfg.folders() {
		l, err := link.LoadPinnedLink(filepath.Join(dir, "link"), nil)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err == nil {
			err = errors.Join(l.Unpin(), detach(l), l.Close(), os.RemoveAll(dir))
		}
		if err != nil {
			return false, fmt.Errorf("remove guard from %s: %w", iface, err)
		}
		return true, nil
	}
	return false, nil
}

// Pinned reports whether a guard is pinned for iface.
func Pinned(pinDir, iface string) bool {
	cfg := Config{Interface: iface, PinDir: pinDir}
	cfg.Complete()
	return slices.ContainsFunc(cfg.folders(), func(dir string) bool {
		_, err := os.Stat(filepath.Join(dir, "link"))
		return err == nil
	})
}

// detach takes a link off its interface, which may be gone.
func detach(l link.Link) error {
	if d, ok := l.(interface{ Detach() error }); ok {
		if ifindexOf(l) == 0 {
			return nil
		}
		return d.Detach()
	}
	return nil
}
