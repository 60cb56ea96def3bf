package daemon

import (
	"errors"
	"fmt"
	"os"

	"byokd/config"
	"byokd/daemon/jobstore"
)

// InitState makes an empty database in the configuration's state_dir; created is
// false where there is one already, which is left as it is. Run as root it gives
// the database to the owner of state_dir, so that byokd's user can write to it.
func InitState(cfg *config.Config) (created bool, err error) {
	if _, err := os.Stat(cfg.StateDir); err != nil {
		return false, fmt.Errorf("state_dir: %w: make the directory and give it to byokd's user", err)
	}
	err = jobstore.Create(cfg.Database())
	if errors.Is(err, jobstore.ErrExists) {
		return false, nil
	}
	return err == nil, err
}
