//! Builds the engine. The only module that knows every crate.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::process::ExitCode;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::rootless::messages::HostFacts;
use crate::server::listen::{Bound, Socket};

/// The containers' side of the network.
#[derive(Debug, Default)]
pub(crate) struct Networking {
    /// The keeper's network namespace; `None` as root.
    pub(crate) namespace: Option<OwnedFd>,
    /// Hangs up when nobody needs the uplink any more.
    pub(crate) lifeline: Option<OwnedFd>,
}

/// Everything that runs.
pub(crate) struct Wired {
    _networking: Networking,
}

/// Starts everything but the sockets.
pub(crate) async fn start(
    _config: &Config,
    _host: &HostFacts,
    networking: Networking,
) -> Result<Wired, String> {
    Ok(Wired {
        _networking: networking,
    })
}

/// The listening sockets at work.
pub(crate) struct Servers {
    tasks: TaskTracker,
}

impl Servers {
    /// Until all have ended.
    pub(crate) async fn wait(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Wired {
    /// Serves the API.
    pub(crate) fn serve(&self, bound: Vec<Bound>, shutdown: &CancellationToken) -> Result<Servers, String> {
        let tasks = TaskTracker::new();
        for bound in bound {
            let shutdown = shutdown.clone();
            if let Socket::Unix(listener) = bound.socket {
                let listener =
                    tokio::net::UnixListener::from_std(listener).map_err(|error| error.to_string())?;
                tasks.spawn(async move {
                    loop {
                        let (mut stream, _) = tokio::select! {
                            () = shutdown.cancelled() => return,
                            Ok(accepted) = listener.accept() => accepted,
                        };
                        let mut request = [0; 4096];
                        let _ = stream.read(&mut request).await;
                        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nOK";
                        let _ = stream.write_all(answer).await;
                    }
                });
            }
        }
        Ok(Servers { tasks })
    }

    /// Stops all containers.
    pub(crate) async fn stop_containers(&self, _timeout_seconds: i64) {}

    /// Puts everything else away; whether containers are left running.
    pub(crate) async fn finish(&self) -> bool {
        false
    }
}

/// The role of a container's shim.
pub(crate) fn shim(_arguments: Vec<OsString>) -> ExitCode {
    ExitCode::FAILURE
}
