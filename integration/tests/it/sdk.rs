//! The same engine through `bollard`, a client library that takes every answer apart by Docker's schema.

use bollard::Docker;
use bollard::container::LogOutput;
use bollard::models::{ContainerCreateBody, HostConfig};
use bollard::query_parameters::{
    AttachContainerOptionsBuilder, CreateContainerOptionsBuilder, CreateImageOptionsBuilder,
    EventsOptionsBuilder, KillContainerOptionsBuilder, ListContainersOptionsBuilder,
    ListImagesOptionsBuilder, LogsOptionsBuilder, RemoveContainerOptionsBuilder, RemoveImageOptionsBuilder,
    StartContainerOptions, StopContainerOptionsBuilder, WaitContainerOptions,
};
use futures_util::{StreamExt as _, TryStreamExt as _};
use tokio::io::AsyncWriteExt as _;

use crate::harness::{Engine, registry, unix_time};

/// The library asks for a newer version first and takes the daemon's from the answer to `/_ping`.
async fn connect(engine: &Engine) -> Docker {
    let docker = Docker::connect_with_unix(
        &engine.socket().display().to_string(),
        60,
        bollard::API_DEFAULT_VERSION,
    );
    docker.unwrap().negotiate_version().await.unwrap()
}

async fn create(
    docker: &Docker,
    name: &str,
    command: &[&str],
    change: impl FnOnce(&mut ContainerCreateBody),
) -> String {
    let mut body = ContainerCreateBody {
        image: Some(registry().busybox()),
        cmd: Some(command.iter().map(|word| (*word).to_owned()).collect()),
        ..Default::default()
    };
    change(&mut body);
    let made = docker
        .create_container(
            Some(CreateContainerOptionsBuilder::new().name(name).build()),
            body,
        )
        .await
        .unwrap();
    assert_eq!(made.warnings, Vec::<String>::new());
    made.id
}

fn text(output: &[LogOutput]) -> (String, String) {
    let mut streams = (String::new(), String::new());
    for piece in output {
        match piece {
            LogOutput::StdOut { message } => streams.0.push_str(&String::from_utf8_lossy(message)),
            LogOutput::StdErr { message } => streams.1.push_str(&String::from_utf8_lossy(message)),
            other => panic!("{other:?}"),
        }
    }
    streams
}

#[tokio::test]
async fn a_whole_life_from_pull_to_removal() {
    let engine = Engine::start();
    let docker = connect(&engine).await;
    let began = unix_time();
    let options = CreateImageOptionsBuilder::new()
        .from_image(&registry().busybox())
        .tag("latest")
        .build();
    let progress: Vec<_> = docker
        .create_image(Some(options), None, None)
        .try_collect()
        .await
        .unwrap();
    assert!(
        progress
            .last()
            .unwrap()
            .status
            .as_ref()
            .unwrap()
            .starts_with("Status: Downloaded newer image")
    );
    let images = docker
        .list_images(Some(ListImagesOptionsBuilder::new().all(true).build()))
        .await
        .unwrap();
    assert_eq!(images.len(), 1);
    let image = docker.inspect_image(&registry().busybox()).await.unwrap();
    assert_eq!(image.id.as_deref(), Some(images[0].id.as_str()));

    let id = create(
        &docker,
        "life",
        &["sh", "-c", "echo out; echo err >&2; exit 3"],
        |_| {},
    )
    .await;
    docker
        .start_container(&id, None::<StartContainerOptions>)
        .await
        .unwrap();
    let waited = docker
        .wait_container(&id, None::<WaitContainerOptions>)
        .next()
        .await
        .unwrap();
    // This library reports a code that is not 0 as an error of its own.
    let code = match waited {
        Ok(answer) => answer.status_code,
        Err(bollard::errors::Error::DockerContainerWaitError { code, .. }) => code,
        Err(error) => panic!("{error}"),
    };
    assert_eq!(code, 3);
    let options = LogsOptionsBuilder::new().stdout(true).stderr(true).build();
    let logs: Vec<_> = docker.logs(&id, Some(options)).try_collect().await.unwrap();
    assert_eq!(text(&logs), ("out\n".to_owned(), "err\n".to_owned()));
    let state = docker.inspect_container(&id, None).await.unwrap().state.unwrap();
    assert_eq!((state.exit_code, state.running), (Some(3), Some(false)));
    let all = docker
        .list_containers(Some(ListContainersOptionsBuilder::new().all(true).build()))
        .await
        .unwrap();
    assert_eq!(all[0].names.as_deref(), Some(&["/life".to_owned()][..]));
    docker.remove_container(&id, None).await.unwrap();
    docker
        .remove_image(
            &registry().busybox(),
            Some(RemoveImageOptionsBuilder::new().build()),
            None,
        )
        .await
        .unwrap();

    let options = EventsOptionsBuilder::new()
        .since(&began.to_string())
        .until(&(unix_time() + 1).to_string())
        .build();
    let events: Vec<_> = docker.events(Some(options)).try_collect().await.unwrap();
    let actions: Vec<_> = events
        .iter()
        .filter_map(|event| event.action.as_deref())
        .collect();
    for action in ["pull", "create", "start", "die", "destroy", "untag", "delete"] {
        assert!(actions.contains(&action), "{action} in {actions:?}");
    }
}

#[tokio::test]
async fn attach_carries_input_and_output() {
    let engine = Engine::with_busybox("overlay2");
    let docker = connect(&engine).await;
    let id = create(&docker, "cat", &["cat"], |body| {
        body.open_stdin = Some(true);
        body.stdin_once = Some(true);
        body.attach_stdin = Some(true);
        body.attach_stdout = Some(true);
    })
    .await;
    let options = AttachContainerOptionsBuilder::new()
        .stdin(true)
        .stdout(true)
        .stderr(true)
        .stream(true)
        .build();
    let mut attached = docker.attach_container(&id, Some(options)).await.unwrap();
    docker
        .start_container(&id, None::<StartContainerOptions>)
        .await
        .unwrap();
    attached.input.write_all(b"through bollard\n").await.unwrap();
    let first = attached.output.next().await.unwrap().unwrap();
    assert_eq!(text(&[first]).0, "through bollard\n");
    attached.input.shutdown().await.unwrap();
    assert!(attached.output.next().await.is_none());
}

#[tokio::test]
async fn kill_stop_and_forced_removal() {
    let engine = Engine::with_busybox("overlay2");
    let docker = connect(&engine).await;
    let id = create(&docker, "box", &["sleep", "1000"], |_| {}).await;
    docker
        .start_container(&id, None::<StartContainerOptions>)
        .await
        .unwrap();
    docker
        .kill_container(
            &id,
            Some(KillContainerOptionsBuilder::new().signal("SIGKILL").build()),
        )
        .await
        .unwrap();
    let _ = docker
        .wait_container(&id, None::<WaitContainerOptions>)
        .next()
        .await;
    docker
        .start_container(&id, None::<StartContainerOptions>)
        .await
        .unwrap();
    docker
        .stop_container(&id, Some(StopContainerOptionsBuilder::new().t(0).build()))
        .await
        .unwrap();
    docker
        .start_container(&id, None::<StartContainerOptions>)
        .await
        .unwrap();
    let refused = docker.remove_container(&id, None).await.unwrap_err();
    assert!(
        matches!(
            refused,
            bollard::errors::Error::DockerResponseServerError { status_code: 409, .. }
        ),
        "{refused}"
    );
    docker
        .remove_container(
            &id,
            Some(RemoveContainerOptionsBuilder::new().force(true).build()),
        )
        .await
        .unwrap();
}

#[tokio::test]
async fn the_daemon_describes_itself() {
    let engine = Engine::start();
    let docker = connect(&engine).await;
    assert_eq!(docker.ping().await.unwrap(), "OK");
    let info = docker.info().await.unwrap();
    assert_eq!(info.containers, Some(0));
    assert!(info.ncpu.unwrap() > 0 && info.mem_total.unwrap() > 0);
    let version = docker.version().await.unwrap();
    assert!(docker.client_version().minor_version >= 40);
    assert!(
        version
            .components
            .unwrap()
            .iter()
            .any(|component| component.name == "Engine")
    );
}

#[tokio::test]
async fn fifty_containers_start_side_by_side() {
    let engine = Engine::with_busybox("overlay2");
    let docker = connect(&engine).await;
    let starts = (0..50).map(|n| {
        let docker = docker.clone();
        async move {
            let name = format!("side-{n}");
            let id = create(&docker, &name, &["sh", "-c", "echo $HOSTNAME"], |body| {
                body.hostname = Some(name.clone());
                body.host_config = Some(HostConfig {
                    network_mode: Some("none".to_owned()),
                    ..Default::default()
                });
            })
            .await;
            docker
                .start_container(&id, None::<StartContainerOptions>)
                .await
                .unwrap();
            docker
                .wait_container(&id, None::<WaitContainerOptions>)
                .next()
                .await
                .unwrap()
                .unwrap();
            let options = LogsOptionsBuilder::new().stdout(true).build();
            let logs: Vec<_> = docker.logs(&id, Some(options)).try_collect().await.unwrap();
            assert_eq!(text(&logs).0, format!("{name}\n"));
        }
    });
    futures_util::future::join_all(starts).await;
    assert_eq!(
        docker
            .list_containers(Some(ListContainersOptionsBuilder::new().all(true).build()))
            .await
            .unwrap()
            .len(),
        50
    );
}
