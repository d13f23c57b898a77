//! A lab's life: up, down, death in between, neighbours, wrong input. Root is
//! needed; without it the tests fail.
#![allow(clippy::unwrap_used, reason = "tests say what they expect")]

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rstest::rstest;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const PODWIRE: &str = env!("CARGO_BIN_EXE_podwire");

const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: one}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: podwire.dev/toolbox, args: [serve]}]
";

/// A lab of its own for a test, down at the latest when dropped.
struct Lab {
    name: String,
}

impl Lab {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        Self {
            name: format!("l{}-{count}", std::process::id()),
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(PODWIRE);
        command
            .arg("lab")
            .args(arguments.iter().take_while(|a| **a != "--"))
            .args(["--name", &self.name])
            .args(arguments.iter().skip_while(|a| **a != "--"));
        command
    }

    fn output(&self, arguments: &[&str], input: &str) -> Output {
        let mut child = self
            .command(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A command that fails early does not read.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    }

    fn success(&self, arguments: &[&str], input: &str) -> String {
        let output = self.output(arguments, input);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn directory(&self) -> PathBuf {
        Path::new("/run/podwire/lab").join(&self.name)
    }

    /// Everything of this lab that can be seen on the machine.
    fn traces(&self) -> Vec<String> {
        let mut traces = Vec::new();
        for path in [
            self.directory(),
            Path::new("/var/lib/podwire/lab").join(&self.name),
            Path::new("/sys/fs/cgroup/unified").join(format!("podwire-lab-{}", self.name)),
            Path::new("/sys/fs/cgroup").join(format!("podwire-lab-{}", self.name)),
        ] {
            if path.exists() {
                traces.push(path.display().to_string());
            }
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        traces.extend(
            mounts
                .lines()
                .filter(|line| line.contains(&self.name))
                .map(str::to_owned),
        );
        for process in processes() {
            let line = process.arguments();
            if line.contains(&self.name) {
                traces.push(format!("process {}: {line}", process.pid));
            }
        }
        traces
    }

    /// The first process, by the lock.
    fn supervisor(&self) -> Option<i32> {
        let text = fs::read_to_string(self.directory().join("lock")).ok()?;
        text.split(' ').next()?.parse().ok()
    }

    /// The lab's processes.
    fn family(&self) -> Vec<Process> {
        let first = self.supervisor().unwrap();
        let descends = |process: &Process| {
            let mut pid = process.pid;
            // A chain of parents is short; more is one that has changed meanwhile.
            (0..16).any(|_| {
                let found = pid == first;
                pid = Process::open(pid).map_or(0, |process| process.parent());
                found
            })
        };
        processes().filter(descends).collect()
    }

    /// One of the lab's processes by its arguments, once it runs.
    fn wait_for(&self, part: &str) -> Option<Pid> {
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            let found = self
                .supervisor()
                .into_iter()
                .flat_map(|_| self.family())
                .find(|process| process.arguments().contains(part));
            if let Some(process) = found {
                return Pid::from_raw(process.pid);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        None
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.output(&["down"], "");
    }
}

/// A process by its open directory in `/proc`, which is never another's even
/// when the number is given away again.
struct Process {
    pid: i32,
    directory: fs::File,
}

impl Process {
    fn open(pid: i32) -> Option<Self> {
        let directory = fs::File::open(format!("/proc/{pid}")).ok()?;
        Some(Self { pid, directory })
    }

    fn path(&self, name: &str) -> String {
        format!("/proc/self/fd/{}/{name}", self.directory.as_raw_fd())
    }

    /// A field of `stat`, counted from behind the name; see proc(5).
    fn stat(&self, field: usize) -> Option<String> {
        let stat = fs::read_to_string(self.path("stat")).ok()?;
        let rest = stat.rsplit_once(')')?.1;
        rest.split_ascii_whitespace().nth(field).map(str::to_owned)
    }

    fn parent(&self) -> i32 {
        self.stat(1).and_then(|ppid| ppid.parse().ok()).unwrap_or(0)
    }

    /// Whether it runs. A dead process that its parent has not reaped yet has
    /// a number left and nothing else.
    fn lives(&self) -> bool {
        self.stat(0)
            .is_some_and(|state| !["Z", "X"].contains(&&*state))
    }

    fn arguments(&self) -> String {
        let line = fs::read(self.path("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).replace('\0', " ")
    }

    /// Handles on its namespaces, which keep their numbers from being given to
    /// others.
    fn namespaces(&self) -> Vec<fs::File> {
        ["net", "mnt", "pid", "uts", "ipc"]
            .iter()
            .filter_map(|kind| fs::File::open(self.path(&format!("ns/{kind}"))).ok())
            .collect()
    }
}

fn processes() -> impl Iterator<Item = Process> {
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| Process::open(entry.ok()?.file_name().to_str()?.parse().ok()?))
}

/// The kind and number of namespaces, as `net:[4026531840]`.
fn names(handles: &[fs::File]) -> BTreeSet<String> {
    handles
        .iter()
        .map(|handle| fs::read_link(format!("/proc/self/fd/{}", handle.as_raw_fd())).unwrap())
        .map(|name| name.display().to_string())
        .collect()
}

/// Links, routes and nftables of the machine itself, by their own tools, and
/// what is in the folders a node has too.
fn machine() -> Vec<String> {
    let mut seen: Vec<String> = [
        vec!["ip", "-o", "link"],
        vec!["ip", "rule"],
        vec!["ip", "-4", "route", "show", "table", "all"],
        vec!["ip", "-6", "route", "show", "table", "all"],
        vec!["nft", "list", "tables"],
    ]
    .iter()
    .map(|line| {
        let output = Command::new(line[0]).args(&line[1..]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        // Learnt routes count their seconds.
        let counts = |word: &&str| !(word.ends_with("sec") && word.len() > 3);
        let words: Vec<&str> = text.split(' ').filter(counts).collect();
        words.join(" ")
    })
    .collect();
    for folder in [
        "/etc/cni/net.d",
        "/etc/netns",
        "/opt/cni/bin",
        "/run/netns",
        "/run/crun",
        "/var/lib/cni",
        "/var/lib/kubelet",
        "/var/log/pods",
    ] {
        let mut entries: Vec<String> = fs::read_dir(folder)
            .into_iter()
            .flatten()
            .map(|entry| entry.unwrap().path().display().to_string())
            .collect();
        entries.sort();
        seen.extend(entries);
    }
    seen
}

#[test]
fn down_leaves_nothing_behind() {
    let lab = Lab::new();
    let before = machine();
    lab.success(&["up", "--nodes", "2", "-f", "-"], POD);
    let own = names(
        &Process::open(std::process::id() as i32)
            .unwrap()
            .namespaces(),
    );
    let held: Vec<fs::File> = lab.family().iter().flat_map(Process::namespaces).collect();
    let namespaces: BTreeSet<String> = names(&held).difference(&own).cloned().collect();
    assert!(namespaces.len() > 10, "{namespaces:?}");
    assert!(!lab.traces().is_empty());
    assert_eq!(
        machine(),
        before,
        "a running lab does not touch the machine"
    );
    lab.success(&["down"], "");
    assert_eq!(lab.traces(), Vec::<String>::new());
    assert_eq!(machine(), before);
    for process in processes() {
        let its = names(&process.namespaces());
        let left: Vec<_> = its.intersection(&namespaces).collect();
        assert!(
            left.is_empty() || !process.lives(),
            "process {} ({}) is in {left:?}",
            process.pid,
            process.arguments()
        );
    }
    // Bound namespaces live without processes.
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let bound: Vec<&str> = mounts
        .lines()
        .filter(|line| line.split(' ').any(|word| namespaces.contains(word)))
        .collect();
    assert_eq!(bound, Vec::<&str>::new());
    drop(held);
    // Down of what is down is no error.
    lab.success(&["down"], "");
}

/// Kills `up`, or the lab's first process, this many milliseconds after the
/// start; then down must leave nothing and a second up must work.
#[rstest]
#[case(0)]
#[case(5)]
#[case(15)]
#[case(40)]
#[case(80)]
#[case(150)]
#[case(300)]
#[case(600)]
#[case(1200)]
fn whatever_is_killed_during_up_down_cleans_and_up_works_again(
    #[case] after: u64,
    #[values("up", "supervisor")] victim: &str,
) {
    let lab = Lab::new();
    let mut up = lab
        .command(&["up", "--nodes", "2", "--keep"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(after));
    if victim == "up" {
        up.kill().unwrap();
    } else if let Some(pid) = lab.supervisor().and_then(Pid::from_raw) {
        // It may be the command itself, which signs the lock first.
        let _ = kill_process(pid, Signal::KILL);
    }
    let _ = up.wait().unwrap();
    lab.success(&["down"], "");
    assert_eq!(lab.traces(), Vec::<String>::new());
    lab.success(&["up", "--nodes", "1", "-f", "-"], POD);
    lab.success(&["down"], "");
    assert_eq!(lab.traces(), Vec::<String>::new());
}

/// Kills a part as soon as it runs, or a while later: `up` ends, with the part
/// started again or with an error, and nothing is left after `down`.
#[rstest]
fn whatever_part_is_killed_during_up_down_cleans_and_up_works_again(
    #[values("control-plane", "toolbox serve", "lab-node", "agent --", "kubelet --")] part: &str,
    #[values(0, 100)] after: u64,
) {
    let lab = Lab::new();
    let mut up = lab
        .command(&["up", "--nodes", "2", "--keep", "--wait-timeout", "30s"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let victim = lab.wait_for(part).expect("the part runs");
    std::thread::sleep(Duration::from_millis(after));
    // It may have ended by itself, or because the lab is complete.
    let _ = kill_process(victim, Signal::KILL);
    let code = up.wait().unwrap().code();
    assert!(matches!(code, Some(0 | 1)), "{code:?}");
    lab.success(&["down"], "");
    assert_eq!(lab.traces(), Vec::<String>::new());
    lab.success(&["up", "--nodes", "1", "-f", "-"], POD);
}

#[test]
fn up_says_at_once_that_its_lab_was_killed() {
    let lab = Lab::new();
    let mut up = lab
        .command(&["up", "--nodes", "1", "--wait-timeout", "5m", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let never = POD.replace("podwire.dev/toolbox", "none:1, imagePullPolicy: Never");
    up.stdin
        .take()
        .unwrap()
        .write_all(never.as_bytes())
        .unwrap();
    let mut lines = BufReader::new(up.stderr.take().unwrap()).lines();
    let waits = |line: std::io::Result<String>| line.unwrap().contains("everything is ready");
    assert!(lines.by_ref().any(waits));
    let begun = Instant::now();
    let first = Pid::from_raw(lab.supervisor().unwrap()).unwrap();
    kill_process(first, Signal::KILL).unwrap();
    assert_eq!(up.wait().unwrap().code(), Some(1));
    assert!(begun.elapsed() < Duration::from_secs(20), "{begun:?}");
    let text: Vec<String> = lines.map(Result::unwrap).collect();
    assert!(
        text.join("\n").contains("first process is gone"),
        "{text:?}"
    );
    assert_eq!(lab.traces(), Vec::<String>::new());
}

/// The node's range has one address left: one pod gets it, the other's Event
/// says that there is none, until one is free again.
#[test]
fn a_pod_without_a_free_address_says_so_and_gets_the_next() {
    let lab = Lab::new();
    let summary = lab.success(
        &[
            "up", "--nodes", "1", "--family", "v4", "-o", "json", "-f", "-",
        ],
        POD,
    );
    let summary: Value = serde_json::from_str(&summary).unwrap();
    let address = summary["pods"][0]["addresses"][0].as_str().unwrap();
    let (prefix, own) = address.rsplit_once('.').unwrap();
    // Reserved as the plugin would for other containers.
    let fill = format!(
        "cd /run/podwire/ipam/podwire && for n in $(seq 2 254); do a={prefix}.$n; \
         test $n = {own} || echo '{{\"containerID\":\"other'$n'\",\"ifname\":\"eth0\",\"addresses\":[\"'$a'\"]}}' >$a.json; done"
    );
    lab.success(&["node", "exec", "node-1", "--", "sh", "-c", &fill], "");
    let second = POD.replace("name: one", "name: two");
    let full = lab.output(&["up", "--wait-timeout", "3s", "-f", "-"], &second);
    let text = String::from_utf8_lossy(&full.stderr).into_owned();
    assert_eq!(full.status.code(), Some(1), "{text}");
    assert!(text.contains("no free address in"), "{text}");
    let free = format!("rm /run/podwire/ipam/podwire/{prefix}.99.json");
    lab.success(&["node", "exec", "node-1", "--", "sh", "-c", &free], "");
    let summary = lab.success(&["up", "-o", "json", "-f", "-"], &second);
    assert!(summary.contains(&format!("{prefix}.99\"")), "{summary}");
}

#[test]
fn up_over_a_dead_lab_cleans_first() {
    let lab = Lab::new();
    lab.success(&["up", "--nodes", "1"], "");
    let dead = Pid::from_raw(lab.supervisor().unwrap()).unwrap();
    kill_process(dead, Signal::KILL).unwrap();
    lab.success(&["up", "--nodes", "1", "-f", "-"], POD);
    assert_eq!(lab.success(&["exec", "one", "--", "hostname"], ""), "one\n");
}

#[test]
fn a_lab_leaves_its_neighbour_alone() {
    let (first, second) = (Lab::new(), Lab::new());
    for lab in [&first, &second] {
        lab.success(&["up", "--nodes", "1", "-f", "-"], POD);
    }
    first.success(&["down"], "");
    assert_eq!(first.traces(), Vec::<String>::new());
    assert_eq!(
        second.success(&["exec", "one", "--", "hostname"], ""),
        "one\n"
    );
    let labs: Value = serde_json::from_str(&second.success(&["list", "-o", "json"], "")).unwrap();
    let names: Vec<&str> = labs
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|lab| lab["name"].as_str())
        .collect();
    assert!(names.contains(&second.name.as_str()), "{names:?}");
    assert!(!names.contains(&first.name.as_str()), "{names:?}");
}

#[test]
fn exec_passes_input_output_and_the_exit_code_through() {
    let lab = Lab::new();
    let summary = lab.success(&["up", "--nodes", "1", "-o", "json", "-f", "-"], POD);
    let summary: Value = serde_json::from_str(&summary).unwrap();
    assert_eq!(summary["ready"], true);
    assert_eq!(summary["pods"][0]["name"], "one");

    assert_eq!(
        lab.success(&["exec", "one", "--", "cat"], "through\n"),
        "through\n"
    );
    let failed = lab.output(&["exec", "one", "--", "false"], "");
    assert_eq!(failed.status.code(), Some(1));
    let refused = lab.output(
        &["exec", "one", "--", "curl", "-sS", "http://127.0.0.1:1/"],
        "",
    );
    assert_eq!(refused.status.code(), Some(7));
    assert!(String::from_utf8_lossy(&refused.stderr).starts_with("curl: (7) "));
    let code = lab.output(&["node", "exec", "node-1", "--", "sh", "-c", "exit 42"], "");
    assert_eq!(code.status.code(), Some(42));
    for (arguments, part) in [
        (["exec", "two", "--", "true"], "\"two\" not found"),
        (["node", "remove", "node-9", "--"], "no node node-9"),
    ] {
        let output = lab.output(&arguments, "");
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn a_second_up_applies_and_grows_and_refuses_other_ranges() {
    let lab = Lab::new();
    lab.success(&["up", "--nodes", "1", "--fast-path", "off"], "");
    let summary = lab.success(&["up", "--nodes", "2", "-o", "json", "-f", "-"], POD);
    let summary: Value = serde_json::from_str(&summary).unwrap();
    assert_eq!(summary["nodes"].as_array().unwrap().len(), 2);
    let other = ["up", "--attach", "routed", "--fast-path", "ebpf"];
    let refused = lab.output(&other, "");
    assert_eq!(refused.status.code(), Some(1));
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        text.contains("runs already, with --attach bridge and --fast-path off;"),
        "{text}"
    );
}

#[test]
fn what_does_not_get_ready_is_named_with_the_reason() {
    let lab = Lab::new();
    let broken = POD.replace("podwire.dev/toolbox", "localhost:1/none:1");
    let output = lab.output(
        &["up", "--nodes", "1", "--wait-timeout", "3s", "-f", "-"],
        &broken,
    );
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("Pod one: container main waits"), "{text}");
    assert!(text.contains("Pull"), "{text}");
}

#[rstest]
#[case(&["up", "--cluster-cidr", "10.1.0.0/99"], "", "is no CIDR")]
#[case(&["up", "--underlay", "10.96.0.0/24"], "", "overlap")]
#[case(&["up", "--nodes", "300"], "", "300 are wanted")]
#[case(&["up", "--nodes", "3", "--cluster-cidr", "10.201.0.0/23"], "", "holds 2 nodes with a /24 each, 3 are wanted")]
#[case(&["up", "--nodes", "0"], "", "invalid value '0'")]
#[case(&["up", "--family", "v5"], "", "invalid value 'v5'")]
#[case(&["up", "--cni-conf", "/none", "--cni-bin", "/none"], "", "--cni-conf /none: No such file")]
#[case(&["up", "-f", "-"], "a: b\n c: d\n", "standard input:2:")]
#[case(&["up", "-f", "-"], "{apiVersion: v1, kind: Pot, metadata: {name: a}}", "the lab has no kind \"Pot\"")]
#[case(&["up", "-f", "/none.yaml"], "", "cannot read /none.yaml")]
fn wrong_input_is_refused_before_anything_is_made(
    #[case] arguments: &[&str],
    #[case] input: &str,
    #[case] part: &str,
) {
    let lab = Lab::new();
    let output = lab.output(arguments, input);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains(part), "{text}");
    assert_eq!(lab.traces(), Vec::<String>::new());
}

/// What the machine lacks, simulated by taking it away from the command.
#[rstest]
#[case(&["--bounding-set=-sys_admin", "--inh-caps=-sys_admin"], "SYS_ADMIN")]
#[case(&["--bounding-set=-net_admin", "--inh-caps=-net_admin"], "CONFIG_VETH")]
#[case(&["--reuid=65534", "--clear-groups"], "needs root")]
fn a_machine_that_lacks_something_is_told_what(#[case] without: &[&str], #[case] part: &str) {
    let lab = Lab::new();
    let output = Command::new("setpriv")
        .args(without)
        .args([PODWIRE, "lab", "up", "--name", &lab.name])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains(part), "{text}");
    assert_eq!(lab.traces(), Vec::<String>::new());
}

#[rstest]
#[case(&["status"])]
#[case(&["exec", "one", "--", "true"])]
#[case(&["load", "/none.tar"])]
#[case(&["logs"])]
#[case(&["kubeconfig"])]
#[case(&["node", "add"])]
#[case(&["node", "remove", "node-1"])]
#[case(&["node", "exec", "node-1", "--", "true"])]
fn commands_for_a_lab_that_is_not_there_say_how_to_bring_it_up(#[case] arguments: &[&str]) {
    let lab = Lab::new();
    let output = lab.output(arguments, "");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains(&format!("podwire lab up --name {}", lab.name)),
        "{text}"
    );
    assert_eq!(lab.traces(), Vec::<String>::new());
}

#[test]
fn a_file_without_images_is_refused() {
    let lab = Lab::new();
    lab.success(&["up", "--nodes", "1"], "");
    for (file, part) in [
        ("/none.tar", "cannot read /none.tar: No such file"),
        ("/proc/self/status", "no tar archive"),
        ("/proc/self/task", "neither an OCI layout"),
    ] {
        let output = lab.output(&["load", file], "");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains(part), "{text}");
    }
}
