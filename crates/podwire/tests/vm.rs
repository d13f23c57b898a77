//! A whole lab on a kernel that has IPVS: this machine's, or that of a virtual
//! machine.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use vm::{Feature, Guest};

const PODWIRE: &str = env!("CARGO_BIN_EXE_podwire");
const LAB: &str = "ipvs";
const ADDRESSES: [&str; 2] = ["10.96.0.20", "fd00:96::20"];
const NODE_PORT: u16 = 30480;

#[test]
fn a_lab_on_a_kernel_with_ipvs() {
    let plugin = Path::new(PODWIRE).with_file_name("podwire-cni");
    let report = Guest::new()
        .needs(Feature::Ipvs)
        .program(PODWIRE)
        .program(plugin)
        .program("crun")
        .program("curl")
        .program("ipvsadm")
        .memory(1024)
        .run_cases("guest::")
        .unwrap_or_else(|error| panic!("{error}"));
    print!("{report}");
}

fn podwire(arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(PODWIRE)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("podwire was built by cargo for this test");
    let mut stdin = child.stdin.take().expect("it is piped");
    stdin.write_all(input.as_bytes()).ok();
    drop(stdin);
    child.wait_with_output().expect("podwire ends")
}

/// The standard output of a command that must succeed.
fn told(arguments: &[&str]) -> String {
    let output = podwire(arguments, "");
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A program on a node of the lab, or on the host outside.
fn on(node: &str, command: &[&str]) -> String {
    let mut all = vec!["lab", "node", "exec", "--name", LAB, node, "--"];
    all.extend(command);
    told(&all)
}

fn manifests() -> String {
    let pod = |name: &str| {
        format!(
            "---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: web}}}}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{{name: http, image: podwire.dev/toolbox, args: [serve]}}]
"
        )
    };
    let [v4, v6] = ADDRESSES;
    let service = format!(
        "---
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec:
  type: NodePort
  clusterIPs: ['{v4}', '{v6}']
  ipFamilyPolicy: RequireDualStack
  selector: {{app: web}}
  ports: [{{port: 80, targetPort: 8080, nodePort: {NODE_PORT}}}]
"
    );
    [service, pod("web-1"), pod("web-2")].concat()
}

struct Lab;

impl Drop for Lab {
    fn drop(&mut self) {
        let down = podwire(&["lab", "down", "--name", LAB], "");
        if !std::thread::panicking() {
            assert!(down.status.success(), "{down:?}");
        }
    }
}

mod guest {
    use super::*;

    #[test]
    #[ignore = "run by a_lab_on_a_kernel_with_ipvs"]
    fn services_answer_and_are_listed_as_virtual_servers() {
        let lab = Lab;
        let up = [
            "lab", "up", "--name", LAB, "--nodes", "1", "--proxy", "ipvs", "-f", "-",
        ];
        let output = podwire(&up, &manifests());
        assert!(output.status.success(), "{output:?}");
        let node: String = on("node-1", &["ip", "-4", "-o", "addr", "show", "eth0"]);
        let node = node
            .split_whitespace()
            .find_map(|word| word.strip_suffix("/24"))
            .expect("an address");
        let asked = ADDRESSES
            .map(|address| match address.contains(':') {
                true => format!("http://[{address}]"),
                false => format!("http://{address}"),
            })
            .map(|url| ("node-1", url))
            .into_iter()
            .chain([("outside", format!("http://{node}:{NODE_PORT}"))]);
        let deadline = Instant::now() + Duration::from_secs(60);
        for (from, url) in asked {
            // One after the other: both answer within a few requests of any proxy.
            let url = format!("{url}/hostname?n=[1-8]");
            loop {
                let answers = on(
                    from,
                    &[
                        "curl",
                        "-sS",
                        "-m",
                        "10",
                        "-H",
                        "Connection: close",
                        "-w",
                        "\\n",
                        &url,
                    ],
                );
                if answers.contains("web-1") && answers.contains("web-2") {
                    break;
                }
                assert!(Instant::now() < deadline, "{from} → {url}: {answers}");
            }
        }
        let inspect = |arguments: &[&str]| {
            let mut all = vec!["inspect"];
            all.extend(arguments);
            all.extend(["--lab", LAB, "--node", "node-1"]);
            told(&all)
        };
        let listed = inspect(&["services", "default/web", "-o", "ipvs"]);
        println!("{listed}");
        for part in ["10.96.0.20:80/tcp", "[fd00:96::20]:80/tcp", ":8080"] {
            assert!(listed.contains(part), "{part} in\n{listed}");
        }
        assert_eq!(inspect(&["services", "-o", "iptables"]), "");
        let simulated = inspect(&["service", "--simulate", "10.200.0.99", "10.96.0.20:80"]);
        assert!(
            simulated.contains("virtual server 10.96.0.20:80/tcp"),
            "{simulated}"
        );
        // The kernel's own word for it.
        let servers = on("node-1", &["ipvsadm", "-S", "-n"]);
        assert!(servers.contains("-A -t 10.96.0.20:80 -s rr"), "{servers}");
        drop(lab);
    }
}
