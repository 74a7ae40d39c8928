//! Scenarios, one file a subject. Each starts a daemon of its own (a tenth of a second) as an unprivileged user, with its
//! own data and exec roots, so that they run side by side and a broken one breaks nothing else.

#[cfg(test)]
mod harness;

#[cfg(test)]
mod api;
#[cfg(test)]
mod bench_storage;
#[cfg(test)]
mod changes;
#[cfg(test)]
mod commit;
#[cfg(test)]
mod crash;
#[cfg(test)]
mod daemon;
#[cfg(test)]
mod disk;
#[cfg(test)]
mod driver_switch;
#[cfg(test)]
mod drivers;
#[cfg(test)]
mod export_import;
#[cfg(test)]
mod fuse_overlayfs;
#[cfg(test)]
mod images;
#[cfg(test)]
mod leaks;
#[cfg(test)]
mod lifecycle;
#[cfg(test)]
mod network;
#[cfg(test)]
mod podman;
#[cfg(test)]
mod pull;
#[cfg(test)]
mod pull_faults;
#[cfg(test)]
mod run;
#[cfg(test)]
mod save_load;
#[cfg(test)]
mod sdk;
#[cfg(test)]
mod security;
#[cfg(test)]
mod storage_tool;
#[cfg(test)]
mod storage_verify;
#[cfg(test)]
mod streams;
#[cfg(test)]
mod system_df;
