//! The built `tare` on bundles of Debian's static busybox, as its callers use it.

mod bundle;
mod checkpoint;
mod crash;
mod defaults;
mod features;
mod handed_over;
mod hostile;
mod life_cycle;
mod mounts;
mod namespaces;
mod process;
mod races;
mod refused;
mod terminal;
mod view;
