package config

import "time"

// SetTick has a KeptSecret take a file for settled when its last change is so long ago.
func (k *KeptSecret) SetTick(d time.Duration) { k.tick = d }
