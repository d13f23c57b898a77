//! The end of the process that has attached the programs.

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use podwire_linux::fast_path::{FastPath, Place};

use crate::nodes::{Attach, Node, nodes};
use crate::traffic::{DEADLINE, ask, ask_until_taken, taken_connection};
use crate::witness::programs_at;

/// Tells [`a_process_with_programs`] where to attach them.
const INTERFACES: &str = "PODWIRE_TEST_INTERFACES";
const READY: &str = "attached";

#[test]
#[ignore = "is started by another test, which kills it"]
fn a_process_with_programs() {
    let Ok(interfaces) = std::env::var(INTERFACES) else {
        return;
    };
    let fast = FastPath::load().unwrap();
    let attach = |index: &str| fast.attach(Place::Pod, index.parse().unwrap()).unwrap();
    let _attached: Vec<_> = interfaces.split(' ').map(attach).collect();
    println!("{READY}");
    // Until it is killed, or whoever started it has died.
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

/// An agent in the place of a node's.
fn start(node: &Node, interfaces: [u32; 2]) -> Child {
    let spawn = || {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "end::a_process_with_programs"])
            .args(["--ignored", "--nocapture"])
            .env(
                INTERFACES,
                interfaces.map(|index| index.to_string()).join(" "),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let mut child = node.here.run(spawn).unwrap();
    let mut lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().ends_with(READY)));
    child
}

#[test]
fn programs_are_gone_with_their_process_however_it_ends() {
    let mut nodes = nodes(Attach::Routed);
    let mut pair = taken_connection(&nodes, false);
    let interfaces = ["pwpod", "eth0"].map(|name| nodes[0].index(name));
    let programs = |nodes: &[Node; 2]| interfaces.map(|index| programs_at(&nodes[0].here, index));
    assert_eq!(programs(&nodes), [1, 1]);
    // In good order, with nothing to wait for.
    nodes[0].stop();
    assert_eq!(programs(&nodes), [0, 0]);
    ask(&mut pair);
    let mut child = start(&nodes[0], interfaces);
    assert_eq!(programs(&nodes), [1, 1]);
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    // The kernel tells nobody when it has taken them away.
    let started = Instant::now();
    while programs(&nodes) != [0, 0] {
        assert!(started.elapsed() < DEADLINE, "they are still there");
        std::thread::yield_now();
    }
    ask(&mut pair);
    nodes[0].start();
    ask_until_taken(&nodes, &mut pair);
}
