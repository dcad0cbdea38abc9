//! The same user-data on a real Debian: cloud-init, systemd, sshd, and the guest as root.
//!
//! They need root, systemd-nspawn, ip, nft and `make machine-root`; elsewhere each says that it was skipped, and with `CI=true` it fails.

mod agent;
mod cloud_init;
mod failures;
mod firewall;
mod guest;
mod life;
mod rachel8;
mod record;
mod recovery;
mod replacement;
mod security;
mod service;
mod subscription;
mod suspend;
mod voice;
