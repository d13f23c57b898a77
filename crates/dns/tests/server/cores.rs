//! Which thread answers.

use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};

use hickory_proto::rr::RecordType;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::support::{PATIENCE, config, question, start};

/// Asks so often from `core`, each time after the answer before.
fn ask_from(core: usize, server: SocketAddr, times: u16) {
    let asker = std::thread::spawn(move || {
        let mut only = CpuSet::new();
        only.set(core);
        sched_setaffinity(None, &only).expect("a core of ours");
        let socket = UdpSocket::bind((server.ip(), 0)).expect("a socket");
        socket.connect(server).expect("loopback");
        socket.set_read_timeout(Some(PATIENCE)).expect("settable");
        for id in 0..times {
            let question = question(id, "web.default.svc.cluster.local", RecordType::A);
            socket.send(&question).expect("sent");
            socket.recv(&mut [0; 512]).expect("an answer");
        }
    });
    asker.join().expect("it does not panic");
}

/// How often each thread of the server has been given a core (`schedstat`, proc(5)).
fn turns() -> HashMap<String, u64> {
    let mut turns = HashMap::new();
    for thread in std::fs::read_dir("/proc/self/task").expect("proc is mounted") {
        let thread = thread.expect("proc is mounted").path();
        // Threads of others may end meanwhile.
        let read = |file| std::fs::read_to_string(thread.join(file)).unwrap_or_default();
        if let Some(core) = read("comm").trim().strip_prefix("dns-udp-")
            && let Some(count) = read("schedstat").split_whitespace().nth(2)
        {
            turns.insert(core.to_owned(), count.parse().expect("a number"));
        }
    }
    turns
}

/// On Linux 6.2 and later.
#[test]
fn a_question_is_answered_on_the_core_it_was_asked_on() {
    const TIMES: u16 = 200;
    let mut config = config();
    config.listen.push("[::1]:0".parse().expect("an address"));
    let (_shared, server) = start(config);
    let own = sched_getaffinity(None).expect("fewer cores than such a set has room for");
    let cores: Vec<usize> = (0..CpuSet::MAX_CPU)
        .filter(|core| own.is_set(*core))
        .take(4)
        .collect();
    for address in server.addresses() {
        // All threads have begun.
        for core in &cores {
            ask_from(*core, *address, 1);
        }
        for core in &cores {
            let before = turns();
            ask_from(*core, *address, TIMES);
            for (thread, count) in turns() {
                let taken = count - before[&thread];
                if thread == core.to_string() {
                    assert!(taken >= u64::from(TIMES), "{address} core {core}: {taken}");
                } else {
                    assert!(
                        taken < u64::from(TIMES) / 4,
                        "{address}, core {core}: {taken} times by the thread of core {thread}"
                    );
                }
            }
        }
    }
}
