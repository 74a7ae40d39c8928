//! The parent's side of a keeper's start: the process, the id maps, the handshake.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use skiff_sys::identity::ProcessIdentity;
use skiff_sys::idmap::{self, MapLine};
use skiff_sys::ns::Namespaces;

use super::channel::{Channel, ReceiveError};
use super::messages::{FromKeeper, ToKeeper};
use super::remedies::{Refusal, SystemSettings};
use super::subids::{IdMaps, User};

/// A keeper that takes longer than this is broken. Generous: a machine may swap.
const PATIENCE: Duration = Duration::from_secs(30);

/// The keeper, as its parent sees it. It is not ended by being dropped.
#[derive(Debug)]
pub(crate) struct Keeper {
    /// The process.
    pub(crate) child: Child,
    /// Where it passes on signals.
    pub(crate) channel: Channel,
    /// What it holds.
    pub(crate) namespaces: Namespaces,
    /// Its pid, unmistakably.
    pub(crate) identity: ProcessIdentity,
    /// What it could not set up.
    pub(crate) warnings: Vec<String>,
}

impl Keeper {
    /// Tells it that it is written down and may outlive us. One that has ended meanwhile is seen by its end.
    pub(crate) fn recorded(&self) {
        let _ = self.channel.send(&ToKeeper::Recorded, &[]);
    }
}

/// A pipe whose write end only keepers and their parents hold: its hang-up tells the uplink that nobody needs it any
/// more. It is the keeper's standard output, so that the next start finds it in `/proc/KEEPER/fd/1`.
#[derive(Debug)]
pub(crate) struct Lifeline {
    /// For the uplink, through the daemon.
    pub(crate) read: OwnedFd,
    write: OwnedFd,
}

impl Lifeline {
    /// A new one. # Errors: `EMFILE`.
    pub(crate) fn new() -> io::Result<Self> {
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        Ok(Self { read, write })
    }

    /// That of a living keeper. # Errors: when it has ended meanwhile.
    pub(crate) fn of(keeper: &ProcessIdentity) -> io::Result<Self> {
        let path = format!("/proc/{}/fd/1", keeper.pid);
        // Opening a pipe in /proc gives a new end of the same pipe.
        let write = OpenOptions::new().write(true).open(&path)?;
        let read = OpenOptions::new().read(true).open(&path)?;
        if !write.metadata()?.file_type().is_fifo() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{path} is not a pipe"),
            ));
        }
        Ok(Self {
            read: read.into(),
            write: write.into(),
        })
    }
}

/// Where the namespaces come from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Seed<'a> {
    /// New ones.
    New(&'a IdMaps),
    /// These.
    Existing(&'a Namespaces),
}

/// Why there is no keeper.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// The kernel refused, with the explanation.
    #[error("{0}")]
    Refused(Refusal),
    /// A helper failed.
    #[error("{0}")]
    IdMap(String),
    /// The handshake failed.
    #[error("the keeper did not start: {0}")]
    Handshake(#[from] ReceiveError),
    /// Something else did.
    #[error("cannot start the keeper: {0}")]
    Io(#[from] io::Error),
}

/// New namespaces with everything the caller may map.
#[derive(Debug)]
pub(crate) struct Fresh {
    /// Their keeper.
    pub(crate) keeper: Keeper,
    /// Its lifeline.
    pub(crate) lifeline: Lifeline,
    /// Only one id is mapped.
    pub(crate) single_id: bool,
    /// What the user should know, each a paragraph.
    pub(crate) warnings: Vec<String>,
}

/// Makes new namespaces for the caller.
///
/// # Errors
/// [`StartError`], whose text is for the user.
pub(crate) fn fresh() -> Result<Fresh, StartError> {
    let maps = IdMaps::for_user(&User::current());
    let lifeline = Lifeline::new()?;
    let mut keeper = start(Seed::New(&maps), &lifeline)?;
    let single_id = maps.is_single();
    let warnings = maps
        .warnings
        .into_iter()
        .chain(std::mem::take(&mut keeper.warnings));
    Ok(Fresh {
        warnings: warnings.collect(),
        keeper,
        lifeline,
        single_id,
    })
}

/// Ends a child that did not become a keeper.
struct Unfinished(Option<Child>);

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Starts a keeper and waits until its namespaces are there. Whatever fails, nothing is left running.
///
/// # Errors
/// [`StartError`], whose text is for the user.
pub(crate) fn start(seed: Seed<'_>, lifeline: &Lifeline) -> Result<Keeper, StartError> {
    let (channel, theirs) = Channel::pair()?;
    let child = Command::new("/proc/self/exe")
        .arg0("skiffd")
        .arg(crate::role::KEEPER)
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::from(lifeline.write.try_clone()?))
        // It outlives us: it must not keep our caller's pipes open.
        .stderr(Stdio::null())
        .spawn()?;
    let pid = child.id();
    let mut unfinished = Unfinished(Some(child));

    match seed {
        Seed::New(maps) => {
            channel.send(
                &ToKeeper::Create {
                    last_id: maps.last_gid(),
                },
                &[],
            )?;
            expect_user_namespace(&channel)?;
            write_maps(pid, maps)?;
            channel.send(&ToKeeper::Mapped, &[])?;
        }
        Seed::Existing(namespaces) => channel.send(&ToKeeper::Join, &namespaces.as_fds())?,
    }
    let warnings = loop {
        match channel.receive(Some(PATIENCE))?.0 {
            FromKeeper::Ready { warnings } => break warnings,
            FromKeeper::Failed { stage, errno } => return Err(refused(stage, errno)),
            FromKeeper::UserNamespaceMade | FromKeeper::Signalled(_) => {}
        }
    };
    let namespaces = Namespaces::of_process(pid)?;
    let identity = ProcessIdentity::of(pid)?;
    match unfinished.0.take() {
        Some(child) => Ok(Keeper {
            child,
            channel,
            namespaces,
            identity,
            warnings,
        }),
        None => Err(StartError::Handshake(ReceiveError::Closed)),
    }
}

fn expect_user_namespace(channel: &Channel) -> Result<(), StartError> {
    match channel.receive(Some(PATIENCE))?.0 {
        FromKeeper::UserNamespaceMade => Ok(()),
        FromKeeper::Failed { stage, errno } => Err(refused(stage, errno)),
        other => Err(StartError::Handshake(ReceiveError::Malformed(format!(
            "{other:?}"
        )))),
    }
}

fn refused(stage: super::messages::Stage, errno: i32) -> StartError {
    let errno = Errno::from_raw_os_error(errno);
    StartError::Refused(Refusal {
        stage,
        errno,
        settings: SystemSettings::read(),
    })
}

fn write_maps(pid: u32, maps: &IdMaps) -> Result<(), StartError> {
    match &maps.helpers {
        Some((newuidmap, newgidmap)) => {
            // At the same time: they are independent.
            let uids = spawn_helper(newuidmap, pid, &maps.uids)?;
            let gids = spawn_helper(newgidmap, pid, &maps.gids)?;
            finish_helper(newuidmap, uids, pid, &maps.uids)?;
            finish_helper(newgidmap, gids, pid, &maps.gids)
        }
        None => {
            let write = |file: &str, text: &str| {
                std::fs::write(format!("/proc/{pid}/{file}"), text)
                    .map_err(|error| id_map_error(&format!("write /proc/{pid}/{file}: {error}")))
            };
            write("uid_map", &idmap::map_text(&maps.uids))?;
            // Without this the kernel takes no group map from an ordinary user (user_namespaces(7)).
            write("setgroups", "deny")?;
            write("gid_map", &idmap::map_text(&maps.gids))
        }
    }
}

fn spawn_helper(program: &Path, pid: u32, map: &[MapLine]) -> Result<Child, StartError> {
    Command::new(program)
        .arg(pid.to_string())
        .args(idmap::map_text(map).split_ascii_whitespace())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| id_map_error(&format!("exec {}: {error}", program.display())))
}

fn finish_helper(program: &Path, child: Child, pid: u32, map: &[MapLine]) -> Result<(), StartError> {
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    let map = idmap::map_text(map).replace('\n', " ");
    let said = String::from_utf8_lossy(&output.stderr);
    Err(id_map_error(&format!(
        "{} {pid} [{}] failed: {}",
        program.display(),
        map.trim_end(),
        said.trim()
    )))
}

fn id_map_error(what: &str) -> StartError {
    StartError::IdMap(format!(
        "[rootlesskit:parent] error: failed to setup UID/GID map: {what}\n\
         newuidmap and newgidmap need their setuid bit or file capabilities (reinstall the package uidmap or \
         shadow-utils), the ranges in /etc/subuid and /etc/subgid must be this user's, and no_new_privs must be off."
    ))
}
