//! The container layer against fakes of its neighbours: no process, no mount, no network.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::watch;

use super::*;
use crate::ErrorKind;
use crate::config::ContainerConfig;
use crate::images::ImageView;
use crate::network::{NetworkInfo, Sandbox, SandboxRequest};
use crate::runtime::{
    Adopted, AttachStreams, LaunchFailure, LaunchSpec, NetworkNamespace, StdStream, TaskExit, TaskPid,
};

struct OneImage;

impl ImageSource for OneImage {
    fn find(&self, reference: &str) -> Result<ImageView> {
        if reference != "busybox" {
            return Err(Error::not_found(format!("No such image: {reference}:latest")));
        }
        Ok(ImageView {
            id: "sha256:1111".to_owned(),
            tags: Vec::new(),
            digests: Vec::new(),
            created: None,
            last_tagged: None,
            size: 0,
            architecture: "amd64".to_owned(),
            variant: String::new(),
            os: "linux".to_owned(),
            author: String::new(),
            comment: String::new(),
            config: ContainerConfig {
                cmd: Some(vec!["sh".to_owned()]),
                ..ContainerConfig::default()
            },
            layers: Vec::new(),
            top_layer: Some("sha256:2222".to_owned()),
            raw_config: serde_json::Value::Null,
            parent: None,
        })
    }
}

/// Filesystems, networks and runtime in one, with a record of what exists.
#[derive(Default)]
struct World {
    layers: Mutex<HashSet<String>>,
    mounted: Mutex<HashSet<String>>,
    sandboxes: Mutex<HashSet<String>>,
    tasks: Mutex<HashMap<String, Task>>,
    /// Signals that do not end a task.
    stubborn: Mutex<HashSet<i32>>,
    /// The next start fails with this.
    broken_start: Mutex<Option<(i32, &'static str)>>,
    refuse_removal: Mutex<bool>,
    /// Rounds of the janitor.
    rounds: watch::Sender<u64>,
    /// What cannot be exported, and why.
    unreachable: Mutex<HashMap<String, &'static str>>,
}

struct Task {
    exit: watch::Sender<Option<TaskExit>>,
    started: bool,
    output: Vec<mpsc::Sender<OutputChunk>>,
    input: Option<tokio::io::DuplexStream>,
}

impl World {
    fn end(&self, id: &str, code: i32) {
        let mut tasks = self.tasks.lock().unwrap();
        let task = tasks.get_mut(id).unwrap();
        task.output.clear();
        task.exit.send_replace(Some(TaskExit {
            code,
            finished_at: Timestamp::now(),
            oom_killed: false,
        }));
    }

    fn say(&self, id: &str, text: &'static str) {
        let chunk = OutputChunk {
            stream: StdStream::Stdout,
            bytes: Bytes::from_static(text.as_bytes()),
        };
        for output in &self.tasks.lock().unwrap()[id].output {
            output.try_send(chunk.clone()).unwrap();
        }
    }

    fn is_empty(&self) -> bool {
        self.mounted.lock().unwrap().is_empty()
            && self.sandboxes.lock().unwrap().is_empty()
            && self.tasks.lock().unwrap().is_empty()
    }
}

#[async_trait]
impl RootFilesystems for World {
    fn driver(&self) -> String {
        "fake".to_owned()
    }
    async fn create(&self, id: &str, top: Option<&str>) -> Result<()> {
        assert_eq!(top, Some("sha256:2222"));
        self.layers.lock().unwrap().insert(id.to_owned());
        Ok(())
    }
    async fn mount(&self, id: &str, _disposable: bool) -> Result<PathBuf> {
        self.mounted.lock().unwrap().insert(id.to_owned());
        Ok(PathBuf::from("/rootfs"))
    }
    async fn unmount(&self, id: &str) -> Result<()> {
        self.mounted.lock().unwrap().remove(id);
        Ok(())
    }
    async fn remove(&self, id: &str) -> Result<()> {
        if *self.refuse_removal.lock().unwrap() {
            return Err(Error::system("disk on fire"));
        }
        self.layers.lock().unwrap().remove(id);
        Ok(())
    }
    async fn size(&self, _id: &str, _top: Option<&str>) -> Result<(u64, u64)> {
        Ok((1, 2))
    }
    async fn export(&self, id: &str, _top: Option<&str>) -> Result<Export> {
        match self.unreachable.lock().unwrap().get(id) {
            Some(why) => Err(Error::system(*why)),
            None => Ok(Box::new(|mut out| {
                out.write_all(b"begin").and_then(|()| out.flush()).unwrap();
                Err(Error::system("the disk"))
            })),
        }
    }
    async fn keep_only(&self, live: &[String]) -> Result<()> {
        self.layers.lock().unwrap().retain(|id| live.contains(id));
        self.rounds.send_modify(|rounds| *rounds += 1);
        Ok(())
    }
}

#[async_trait]
impl Networks for World {
    fn check(&self, mode: &NetworkMode) -> Result<()> {
        match mode {
            NetworkMode::Named(name) => Err(Error::not_found(format!("network {name} not found"))),
            _ => Ok(()),
        }
    }
    async fn connect(&self, request: &SandboxRequest) -> Result<Sandbox> {
        self.sandboxes
            .lock()
            .unwrap()
            .insert(request.container_id.clone());
        Ok(Sandbox {
            namespace: NetworkNamespace::Host,
            key: None,
            resolv_conf: "nameserver 192.0.2.1\n".to_owned(),
            endpoints: Vec::new(),
        })
    }
    async fn disconnect(&self, id: &str) -> Result<()> {
        self.sandboxes.lock().unwrap().remove(id);
        Ok(())
    }
    async fn recover(&self, live: &[(String, Sandbox)]) -> Result<()> {
        self.sandboxes
            .lock()
            .unwrap()
            .retain(|id| live.iter().any(|(l, _)| l == id));
        Ok(())
    }
    fn list(&self) -> Vec<NetworkInfo> {
        Vec::new()
    }
}

#[async_trait]
impl Runtime for World {
    async fn create(&self, spec: &LaunchSpec) -> Result<TaskPid, LaunchFailure> {
        let (exit, _) = watch::channel(None);
        let task = Task {
            exit,
            started: false,
            output: Vec::new(),
            input: None,
        };
        self.tasks.lock().unwrap().insert(spec.id.clone(), task);
        Ok(4711)
    }
    async fn start(&self, id: &str) -> Result<(), LaunchFailure> {
        if let Some((exit_code, text)) = self.broken_start.lock().unwrap().take() {
            return Err(LaunchFailure {
                error: Error::invalid(text),
                exit_code,
            });
        }
        self.tasks.lock().unwrap().get_mut(id).unwrap().started = true;
        Ok(())
    }
    async fn attach(&self, id: &str, streams: AttachStreams) -> Result<TaskIo> {
        let (sender, output) = mpsc::channel(16);
        let (near, far) = tokio::io::duplex(64);
        let mut tasks = self.tasks.lock().unwrap();
        let task = tasks.get_mut(id).unwrap();
        task.output.push(sender);
        task.input = Some(far);
        let input = streams
            .stdin
            .then(|| Box::new(near) as Box<dyn tokio::io::AsyncWrite + Send + Unpin>);
        Ok(TaskIo { output, input })
    }
    async fn resize(&self, _id: &str, _size: TerminalSize) -> Result<()> {
        Ok(())
    }
    async fn signal(&self, id: &str, signal: i32) -> Result<()> {
        if !self.stubborn.lock().unwrap().contains(&signal) {
            self.end(id, 128 + signal);
        }
        Ok(())
    }
    async fn wait(&self, id: &str) -> Result<TaskExit> {
        let mut exit = self.tasks.lock().unwrap()[id].exit.subscribe();
        let exit = exit
            .wait_for(Option::is_some)
            .await
            .map_err(|_| Error::system("gone"))?;
        Ok(exit.clone().unwrap())
    }
    async fn delete(&self, id: &str) -> Result<()> {
        self.tasks.lock().unwrap().remove(id);
        Ok(())
    }
    async fn adopt(&self, id: &str) -> Result<Adopted> {
        Ok(match self.tasks.lock().unwrap().get(id) {
            None => Adopted::Gone,
            Some(task) => match &*task.exit.borrow() {
                Some(exit) => Adopted::Exited(exit.clone()),
                None => Adopted::Running(4711),
            },
        })
    }
    async fn logs(&self, _request: LogRequest) -> Result<mpsc::Receiver<Result<LogEntry>>> {
        Ok(mpsc::channel(1).1)
    }
    fn runtimes(&self) -> Vec<(String, String)> {
        vec![("fake".to_owned(), String::new())]
    }
    fn default_runtime(&self) -> String {
        "fake".to_owned()
    }
}

struct Bench {
    world: Arc<World>,
    containers: Containers,
    events: Events,
    directory: tempfile::TempDir,
}

fn open(directory: &tempfile::TempDir, world: &Arc<World>, events: &Events) -> Containers {
    let settings = Settings {
        directory: directory.path().join("containers"),
        hosts_file: PathBuf::from("/etc/hosts"),
        own_socket: None,
    };
    let neighbours = Neighbours {
        images: Arc::new(OneImage),
        filesystems: Arc::clone(world) as _,
        networks: Arc::clone(world) as _,
        runtime: Arc::clone(world) as _,
        events: events.clone(),
    };
    Containers::open(settings, neighbours).unwrap()
}

fn bench() -> Bench {
    let directory = tempfile::tempdir().unwrap();
    let (world, events) = (Arc::new(World::default()), Events::default());
    let containers = open(&directory, &world, &events);
    Bench {
        world,
        containers,
        events,
        directory,
    }
}

impl Bench {
    async fn create(&self, name: &str, host: HostConfig) -> String {
        let config = ContainerConfig {
            image: "busybox".to_owned(),
            open_stdin: true,
            labels: Some(BTreeMap::from([("who".to_owned(), name.to_owned())])),
            ..ContainerConfig::default()
        };
        let request = CreateRequest {
            name: Some(name.to_owned()),
            config,
            host_config: host,
            ..Default::default()
        };
        self.containers.create(request).await.unwrap().id
    }

    fn actions(&self) -> Vec<String> {
        self.events
            .subscribe()
            .0
            .iter()
            .map(|event| event.action.clone())
            .collect()
    }

    /// A second daemon on the same directory and world.
    async fn restarted(&self) -> Containers {
        let containers = open(&self.directory, &self.world, &self.events);
        containers.recover().await.unwrap();
        containers
    }
}

fn auto_remove() -> HostConfig {
    HostConfig {
        auto_remove: true,
        ..HostConfig::default()
    }
}

fn all_streams() -> AttachOptions {
    let streams = AttachStreams {
        stdin: true,
        stdout: true,
        stderr: true,
    };
    AttachOptions {
        streams,
        logs: false,
        stream: true,
    }
}

#[tokio::test]
async fn a_whole_life() {
    let b = bench();
    let id = b.create("web", HostConfig::default()).await;
    let exit = b.containers.wait("web", WaitCondition::NextExit).unwrap();
    b.containers.start("web").await.unwrap();
    assert_eq!(b.containers.find(&id[..12]).unwrap().state.status().pid, 4711);
    assert_eq!(
        b.containers.start("web").await.unwrap_err().kind(),
        ErrorKind::NotModified
    );
    b.world.end(&id, 3);
    assert_eq!(
        exit.await,
        WaitOutcome {
            status_code: 3,
            error: None
        }
    );
    assert_eq!(
        b.containers
            .stop("web", StopOptions::default())
            .await
            .unwrap_err()
            .kind(),
        ErrorKind::NotModified
    );
    // A removal right after the end waits for the clean-up.
    b.containers
        .remove("web", RemoveOptions::default())
        .await
        .unwrap();
    assert!(b.world.is_empty());
    assert!(b.world.layers.lock().unwrap().is_empty());
    assert_eq!(
        b.containers.find(&id).unwrap_err().to_string(),
        format!("No such container: {id}")
    );
    assert_eq!(b.actions(), ["create", "start", "die", "destroy"]);
    assert_eq!(
        std::fs::read_dir(b.directory.path().join("containers"))
            .unwrap()
            .count(),
        0
    );
}

#[tokio::test]
async fn an_export_that_cannot_begin_is_an_error_and_none_that_happened() {
    let b = bench();
    let id = b.create("box", HostConfig::default()).await;
    let broken = "transport endpoint is not connected";
    b.world.unreachable.lock().unwrap().insert(id.clone(), broken);
    let error = b.containers.export("box").await.unwrap_err();
    assert_eq!(
        (error.kind(), error.to_string()),
        (ErrorKind::System, broken.to_owned())
    );
    assert_eq!(b.actions(), ["create"]);
    // Later the stream says so.
    b.world.unreachable.lock().unwrap().clear();
    let mut stream = b.containers.export("box").await.unwrap();
    assert_eq!(b.actions(), ["create", "export"]);
    assert_eq!(stream.recv().await.unwrap().unwrap(), "begin");
    assert_eq!(stream.recv().await.unwrap().unwrap_err().to_string(), "the disk");
    assert!(stream.recv().await.is_none());
}

#[tokio::test]
async fn attached_before_the_start_misses_nothing() {
    let b = bench();
    let id = b.create("cat", HostConfig::default()).await;
    let mut attachment = b.containers.attach("cat", all_streams()).await.unwrap();
    b.containers.start("cat").await.unwrap();
    b.world.say(&id, "hello");
    assert_eq!(attachment.io.output.recv().await.unwrap().bytes, "hello");
    let mut input = attachment.io.input.take().unwrap();
    input.write_all(b"typed").await.unwrap();
    let mut far = b
        .world
        .tasks
        .lock()
        .unwrap()
        .get_mut(&id)
        .unwrap()
        .input
        .take()
        .unwrap();
    let mut typed = [0; 5];
    far.read_exact(&mut typed).await.unwrap();
    assert_eq!(&typed, b"typed");
    b.world.end(&id, 0);
    assert_eq!(attachment.io.output.recv().await, None);
}

#[tokio::test]
async fn a_failed_start_leaves_nothing_and_can_be_tried_again() {
    let b = bench();
    b.create("bad", HostConfig::default()).await;
    let mut attachment = b.containers.attach("bad", all_streams()).await.unwrap();
    *b.world.broken_start.lock().unwrap() = Some((127, "executable file not found in $PATH"));
    let error = b.containers.start("bad").await.unwrap_err();
    assert_eq!(
        (error.kind(), error.to_string().as_str()),
        (ErrorKind::InvalidParameter, "executable file not found in $PATH")
    );
    assert!(b.world.is_empty());
    assert_eq!(attachment.io.output.recv().await, None);
    let status = b.containers.find("bad").unwrap().state.status();
    assert_eq!((status.word, status.exit_code), ("created", 127));
    b.containers.start("bad").await.unwrap();
}

#[tokio::test]
async fn auto_removal_after_the_end_and_after_a_failed_start() {
    let b = bench();
    let id = b.create("once", auto_remove()).await;
    let removed = b.containers.wait("once", WaitCondition::Removed).unwrap();
    b.containers.start("once").await.unwrap();
    b.world.end(&id, 5);
    assert_eq!(removed.await.status_code, 5);
    assert!(b.containers.find("once").is_err());

    b.create("never", auto_remove()).await;
    let removed = b.containers.wait("never", WaitCondition::Removed).unwrap();
    *b.world.broken_start.lock().unwrap() = Some((126, "permission denied"));
    b.containers.start("never").await.unwrap_err();
    assert_eq!(removed.await.status_code, 126);
    assert!(b.world.is_empty() && b.world.layers.lock().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn stop_kills_after_the_timeout_and_blocks_nobody() {
    let b = bench();
    b.world.stubborn.lock().unwrap().insert(15);
    b.create("deaf", HostConfig::default()).await;
    b.containers.start("deaf").await.unwrap();
    let stopping = {
        let containers = b.containers.clone();
        tokio::spawn(async move { containers.stop("deaf", StopOptions::default()).await })
    };
    while !b.actions().contains(&"kill".to_owned()) {
        tokio::task::yield_now().await;
    }
    // Ten (virtual) seconds have not passed: it runs, and others are served.
    assert!(b.containers.find("deaf").unwrap().state.status().running);
    b.containers
        .resize("deaf", TerminalSize { height: 1, width: 1 })
        .await
        .unwrap();
    stopping.await.unwrap().unwrap();
    assert_eq!(b.containers.find("deaf").unwrap().state.status().exit_code, 137);
}

#[tokio::test]
async fn conflicts_say_what_docker_says() {
    let b = bench();
    let id = b.create("p1", HostConfig::default()).await;
    let text = |result: Result<()>| result.unwrap_err().to_string();
    assert_eq!(
        text(b.containers.kill("p1", None).await),
        format!("cannot kill container: p1: container {id} is not running")
    );
    assert_eq!(
        text(
            b.containers
                .resize("p1", TerminalSize { height: 1, width: 1 })
                .await
        ),
        format!("container {id} is not running")
    );
    assert_eq!(
        text(b.containers.rename("p1", "").await),
        "Neither old nor new names may be empty"
    );
    let request = CreateRequest {
        name: Some("/p1".to_owned()),
        config: ContainerConfig {
            image: "busybox".to_owned(),
            ..ContainerConfig::default()
        },
        ..CreateRequest::default()
    };
    let error = b.containers.create(request).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert_eq!(
        error.to_string(),
        format!(
            "Conflict. The container name \"/p1\" is already in use by container \"{id}\". You have to remove (or \
             rename) that container to be able to reuse that name."
        )
    );
    b.containers.start("p1").await.unwrap();
    assert_eq!(
        text(b.containers.remove("p1", RemoveOptions::default()).await),
        "cannot remove container \"/p1\": container is running: stop the container before removing or force remove"
    );
    b.containers
        .remove(
            "p1",
            RemoveOptions {
                force: true,
                volumes: false,
            },
        )
        .await
        .unwrap();
    assert!(b.world.is_empty());
}

#[tokio::test]
async fn a_failed_creation_gives_the_name_back() {
    let b = bench();
    let request = |image: &str| CreateRequest {
        name: Some("n1".to_owned()),
        config: ContainerConfig {
            image: image.to_owned(),
            ..ContainerConfig::default()
        },
        ..CreateRequest::default()
    };
    let error = b.containers.create(request("nosuch")).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.to_string().as_str()),
        (ErrorKind::NotFound, "No such image: nosuch:latest")
    );
    b.containers.create(request("busybox")).await.unwrap();
}

#[tokio::test]
async fn a_removal_that_fails_leaves_a_dead_container_that_can_be_removed_later() {
    let b = bench();
    b.create("stuck", HostConfig::default()).await;
    *b.world.refuse_removal.lock().unwrap() = true;
    let error = b
        .containers
        .remove("stuck", RemoveOptions::default())
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "disk on fire");
    assert_eq!(b.containers.find("stuck").unwrap().state.status().word, "dead");
    *b.world.refuse_removal.lock().unwrap() = false;
    b.containers
        .remove("stuck", RemoveOptions::default())
        .await
        .unwrap();
    assert!(b.containers.find("stuck").is_err());
}

#[tokio::test]
async fn a_new_daemon_adopts_what_runs_and_records_what_ended() {
    let b = bench();
    let runs = b.create("runs", HostConfig::default()).await;
    let ended = b.create("ended", HostConfig::default()).await;
    let once = b.create("once", auto_remove()).await;
    b.create("idle", HostConfig::default()).await;
    for name in ["runs", "ended", "once"] {
        b.containers.start(name).await.unwrap();
    }
    // The old daemon's owners are cut off from the world, as by kill -9: the ends below are seen by the new one only.
    let orphaned: Vec<Task> = {
        let mut tasks = b.world.tasks.lock().unwrap();
        let fresh = || Task {
            exit: watch::channel(None).0,
            started: true,
            output: Vec::new(),
            input: None,
        };
        [&runs, &ended, &once]
            .iter()
            .filter_map(|id| tasks.insert((**id).clone(), fresh()))
            .collect()
    };
    b.world.end(&ended, 9);
    b.world.end(&once, 0);
    let containers = b.restarted().await;
    assert!(containers.find("runs").unwrap().state.status().running);
    containers.wait("ended", WaitCondition::NotRunning).unwrap().await;
    assert_eq!(containers.find("ended").unwrap().state.status().exit_code, 9);
    if let Ok(removed) = containers.wait("once", WaitCondition::Removed) {
        removed.await;
    }
    assert!(containers.find("once").is_err());
    assert_eq!(containers.find("idle").unwrap().state.status().word, "created");
    assert!(b.world.sandboxes.lock().unwrap().contains(&runs));
    containers.stop("runs", StopOptions::default()).await.unwrap();
    drop(orphaned);
}

#[tokio::test(start_paused = true)]
async fn a_container_whose_record_cannot_be_read_keeps_its_layer() {
    let b = bench();
    let good = b.create("good", HostConfig::default()).await;
    let damaged = b.create("damaged", HostConfig::default()).await;
    let newer = b.create("newer", HostConfig::default()).await;
    let directory = b.directory.path().join("containers");
    let record = |id: &str| directory.join(id).join("config.json");
    std::fs::write(record(&damaged), "{").unwrap();
    let mut of_newer: serde_json::Value =
        serde_json::from_slice(&std::fs::read(record(&newer)).unwrap()).unwrap();
    of_newer["version"] = serde_json::json!(disk::FORMAT + 1);
    std::fs::write(record(&newer), of_newer.to_string()).unwrap();
    b.world.layers.lock().unwrap().insert("orphan".to_owned());

    let containers = b.restarted().await;
    let mut rounds = b.world.rounds.subscribe();
    rounds.wait_for(|rounds| *rounds == 1).await.unwrap();
    for id in [&damaged, &newer] {
        assert!(containers.find(id).is_err());
    }
    let all = HashSet::from([good.clone(), damaged.clone(), newer]);
    assert_eq!(*b.world.layers.lock().unwrap(), all);

    // A list that cannot be read is not an empty one.
    let elsewhere = b.directory.path().join("elsewhere");
    std::fs::rename(&directory, &elsewhere).unwrap();
    containers.shared.janitor.notify_one();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(*b.world.layers.lock().unwrap(), all);
    std::fs::rename(&elsewhere, &directory).unwrap();
    std::fs::remove_dir_all(directory.join(&damaged)).unwrap();
    containers.shared.janitor.notify_one();
    rounds.wait_for(|rounds| *rounds == 2).await.unwrap();
    assert!(!b.world.layers.lock().unwrap().contains(&damaged));
}

#[tokio::test(start_paused = true)]
async fn what_nobody_needs_is_collected_every_hour() {
    let b = bench();
    let containers = b.restarted().await;
    let mut rounds = b.world.rounds.subscribe();
    rounds.wait_for(|rounds| *rounds == 1).await.unwrap();
    // Nothing is removed, so nobody rings.
    b.world.layers.lock().unwrap().insert("orphan".to_owned());
    // The clock is virtual: it goes on whenever everybody waits for it.
    tokio::time::sleep(Duration::from_secs(2 * 3600)).await;
    assert!(*rounds.borrow() > 1);
    assert!(b.world.layers.lock().unwrap().is_empty());
    drop(containers);
}

#[tokio::test]
async fn lists_and_filters() {
    let b = bench();
    b.create("one", HostConfig::default()).await;
    let two = b.create("two", HostConfig::default()).await;
    b.containers.start("two").await.unwrap();
    let names = |json: &str, all: bool| {
        let options = ListOptions {
            all,
            limit: None,
            filters: Filters::parse(json).unwrap(),
        };
        let views = b.containers.list(&options).unwrap();
        views
            .iter()
            .map(|view| view.record.name.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(names("", false), ["two"]);
    assert_eq!(names("", true), ["two", "one"]);
    assert_eq!(names(r#"{"status":["created"]}"#, false), ["one"]);
    assert_eq!(names(r#"{"name":["^/on"]}"#, true), ["one"]);
    assert_eq!(names(r#"{"label":["who=two"]}"#, true), ["two"]);
    assert_eq!(names(r#"{"before":["two"]}"#, true), ["one"]);
    assert_eq!(names(r#"{"ancestor":["busybox"]}"#, true).len(), 2);
    assert_eq!(names(r#"{"ancestor":["other"]}"#, true).len(), 0);
    assert_eq!(names(&format!(r#"{{"id":["{}"]}}"#, &two[..6]), true), ["two"]);
    let (pruned, _) = b.containers.prune(&Filters::default()).await.unwrap();
    assert_eq!(pruned.len(), 1);
    assert_eq!(names("", true), ["two"]);
}
