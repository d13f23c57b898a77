//! Services on the machine's loopback addresses.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    path::Path,
    time::Duration,
};

use crate::support::{
    Lab, PODWIRE, eventually, output, printed, server, service, success, unique_name, url,
};

/// A port nobody has at the moment.
fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0))
        .and_then(|listener| listener.local_addr())
        .expect("loopback has free ports")
        .port()
}

/// What `/hostname` of a published port answers.
fn hostname(port: u16, loopback: &str) -> Result<String, String> {
    let answer = output(
        "curl",
        &["-sS", "--max-time", "5", &url(loopback, port, "/hostname")],
    );
    match answer.status.success() {
        true => Ok(String::from_utf8_lossy(&answer.stdout).trim().to_owned()),
        false => Err(printed(&answer)),
    }
}

#[test]
fn a_published_service_answers_on_the_machines_loopback() {
    let (web, late) = (free_port(), free_port());
    let lab = Lab::up(
        &[
            "--nodes",
            "2",
            "--publish",
            &format!("{web}:web:80"),
            "--publish",
            &format!("{late}:default/late:80"),
        ],
        &[
            server("web-1", "web", "node-1"),
            server("late-1", "late", "node-2"),
            service("web", "10.96.0.20"),
        ]
        .concat(),
    );
    for loopback in ["127.0.0.1", "::1"] {
        assert_eq!(
            hostname(web, loopback).as_deref(),
            Ok("web-1"),
            "{loopback}"
        );
    }

    // A Service that is not there: closed at once, and told.
    let mut stream = TcpStream::connect(("127.0.0.1", late)).expect("the port is open");
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .expect("a time-out can be set");
    let end = stream.read(&mut [0; 1]);
    assert!(
        matches!(&end, Ok(0)) || matches!(&end, Err(e) if e.kind() == ErrorKind::ConnectionReset),
        "{end:?}"
    );
    let log = success(
        "lab logs",
        &output(
            PODWIRE,
            &["lab", "logs", "--name", &lab.name, "control-plane"],
        ),
    );
    assert!(log.contains("there is no Service default/late"), "{log}");

    // It answers as soon as it is there, and after it moved to other pods.
    lab.apply(&service("late", "10.96.0.21"));
    let answers = |wanted: &str| {
        eventually(
            "the late Service",
            Duration::from_secs(10),
            || match hostname(late, "127.0.0.1") {
                Ok(name) if name == wanted => Ok(()),
                other => Err(format!("{other:?}")),
            },
        );
    };
    answers("late-1");
    lab.kubectl(&["delete", "service", "late"]);
    lab.apply(&service("late", "10.96.0.22").replace("{app: late}", "{app: web}"));
    answers("web-1");
}

#[test]
fn bytes_go_both_ways_and_each_direction_ends_by_itself() {
    let port = free_port();
    let lab = Lab::up(
        &["--nodes", "1", "--publish", &format!("{port}:echo:7")],
        "---
apiVersion: v1
kind: Pod
metadata: {name: echo, labels: {app: echo}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: echo
    image: podwire.dev/toolbox
    args: [serve, --tcp, '7', --http, '8080']
    readinessProbe: {tcpSocket: {port: 7}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: echo}
spec:
  selector: {app: echo}
  ports: [{port: 7}]
",
    );
    let exchange = || -> std::io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        let sent: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
        let mut writer = stream.try_clone()?;
        let wanted = sent.clone();
        let writing = std::thread::spawn(move || {
            writer.write_all(&sent)?;
            // The end of this direction; the answer is still to come.
            writer.shutdown(Shutdown::Write)
        });
        let mut received = Vec::new();
        stream.read_to_end(&mut received)?;
        writing.join().expect("the writer does not panic")?;
        assert!(received == wanted, "{} bytes came back", received.len());
        Ok(received)
    };
    exchange().expect("an exchange through the published port");

    // The ports outlive the control plane: who connects meanwhile waits.
    let processes = output(
        "pgrep",
        &["-f", &format!("control-plane --name {} ", lab.name)],
    );
    let pid: i32 = String::from_utf8_lossy(&processes.stdout)
        .trim()
        .parse()
        .unwrap_or_else(|_| panic!("one control plane: {}", printed(&processes)));
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid).expect("pgrep prints process numbers"),
        rustix::process::Signal::KILL,
    )
    .expect("the control plane runs");
    // One that the dying process had accepted is lost with it.
    eventually(
        "an exchange after kill -9 of the control plane",
        Duration::from_secs(20),
        || exchange().map_err(|error| error.to_string()),
    );
}

#[test]
fn a_taken_port_is_told_before_anything_is_made() {
    let holder = TcpListener::bind(("127.0.0.1", 0)).expect("loopback has free ports");
    let port = holder.local_addr().expect("it is bound").port();
    let name = unique_name();
    let up = output(
        PODWIRE,
        &[
            "lab",
            "up",
            "--name",
            &name,
            "--publish",
            &format!("{port}:web:80"),
        ],
    );
    assert!(!up.status.success());
    let text = String::from_utf8_lossy(&up.stderr);
    assert!(
        text.contains(&format!(
            "--publish {port}: cannot listen on 127.0.0.1:{port}"
        )),
        "{text}"
    );
    assert!(
        !Path::new("/run/podwire/lab").join(&name).exists(),
        "something was made"
    );
}
