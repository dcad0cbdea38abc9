//! `HetznerProject`: one project at Hetzner, its token, its limits.

pub mod connection;
