//! Who reaches which endpoints under which address in a whole lab: agent,
//! kubelet, real pods. The rows are those of the services crate's matrix; there
//! is every protocol and kind of address, here TCP through the whole chain from
//! `kubectl` on.

use std::collections::BTreeMap;
use std::time::Duration;

use rstest::rstest;
use serde_json::{Value, json};

use crate::support::{Lab, PODWIRE, client, eventually, printed, url};

#[path = "../../../services/tests/matrix/rule.rs"]
mod rule;

use rule::{Caller, Endpoints, Outcome, Policy, Report, Row, Target};

const PATIENCE: Duration = Duration::from_secs(60);
/// A row is asked at least so often, and until all that should answer have, but
/// not for ever: the odds that one of two is never drawn in forty are nil.
const DRAWS: [u32; 2] = [3, 40];
const NODE_PORT: u16 = 30460;
const CLUSTER: [&str; 2] = ["10.96.0.60", "fd00:96::60"];
const BALANCER: [&str; 2] = ["198.51.100.60", "2001:db8:60::60"];
/// The router's addresses on the network of the outside host.
const ROUTER: [&str; 2] = ["203.0.113.1", "2001:db8:113::1"];
const OUTSIDE: [&str; 2] = ["203.0.113.10", "2001:db8:113::10"];

/// A pod with the machine's own tools that serves HTTP.
fn endpoint(name: &str, node: &str) -> String {
    crate::support::server(name, "none", node)
        .replace("podwire.dev/toolbox", "'host:'")
        .replace(
            "    ports:",
            &format!("    command: [{PODWIRE}, toolbox, serve, --http, '8080']\n    ports:"),
        )
}

/// The Service without selector, so that the test says where its endpoints are.
fn service(policy: Policy) -> Value {
    let word = |local| if local { "Local" } else { "Cluster" };
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {
            "type": "LoadBalancer", "clusterIP": CLUSTER[0], "clusterIPs": CLUSTER,
            "ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv4", "IPv6"],
            "externalTrafficPolicy": word(policy.is_local(false)),
            "internalTrafficPolicy": word(policy.is_local(true)),
            "ports": [{"port": 80, "targetPort": 8080, "nodePort": NODE_PORT}],
        },
    })
}

struct Stage {
    lab: Lab,
    /// The pods' addresses, by pod, of each family.
    pods: BTreeMap<&'static str, Vec<String>>,
    nodes: Vec<String>,
}

impl Stage {
    fn up(proxy: &str, attach: &str) -> Self {
        let lab = Lab::up(
            &["--nodes", "2", "--proxy", proxy, "--attach", attach],
            &[
                endpoint("local", "node-1"),
                endpoint("remote", "node-2"),
                client("client", "node-1"),
            ]
            .concat(),
        );
        let nodes = lab.node_addresses("node-1");
        for (family, node) in nodes.iter().enumerate() {
            for address in [CLUSTER[family], BALANCER[family]] {
                let flag = ["-4", "-6"][family];
                let router = ROUTER[family];
                for (space, via) in [("router", node.as_str()), ("outside", router)] {
                    lab.node(space, &["ip", flag, "route", "add", address, "via", via]);
                }
            }
        }
        let pods = ["local", "remote", "client"]
            .map(|pod| (pod, lab.pod_addresses(pod)))
            .into();
        Self { lab, pods, nodes }
    }

    fn tell(&self, policy: Policy, endpoints: Endpoints) {
        let slices = ["IPv4", "IPv6"].iter().enumerate().map(|(family, kind)| {
            let list: Vec<Value> = endpoints
                .names()
                .iter()
                .map(|name| {
                    let node = if *name == "local" { "node-1" } else { "node-2" };
                    json!({"addresses": [self.pods[name][family]], "nodeName": node,
                        "conditions": {"ready": true}})
                })
                .collect();
            json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {"name": format!("web-{family}"),
                    "labels": {"kubernetes.io/service-name": "web"}},
                "addressType": kind, "endpoints": list,
                "ports": [{"name": "", "protocol": "TCP", "port": 8080}],
            })
        });
        let mut items = vec![service(policy)];
        items.extend(slices);
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
        self.lab.apply(&list.to_string());
        let ingress: Vec<Value> = BALANCER.iter().map(|ip| json!({"ip": ip})).collect();
        let status = json!({"status": {"loadBalancer": {"ingress": ingress}}}).to_string();
        self.lab.kubectl(&[
            "patch",
            "service",
            "web",
            "--subresource=status",
            "--type=merge",
            "-p",
            &status,
        ]);
    }

    fn own(&self, caller: Caller, family: usize) -> &str {
        match caller {
            Caller::Pod => &self.pods["client"][family],
            Caller::Endpoint => &self.pods["local"][family],
            Caller::Node => &self.nodes[family],
            Caller::Outside => OUTSIDE[family],
        }
    }

    fn target(&self, target: Target, family: usize) -> String {
        match target {
            Target::NodePort => url(&self.nodes[family], NODE_PORT, ""),
            Target::LoadBalancer => url(BALANCER[family], 80, ""),
            Target::ClusterIp | Target::ExternalIp => url(CLUSTER[family], 80, ""),
        }
    }

    /// Asks all targets from where a caller is, each until so many have answered;
    /// both answers of one curl come over one connection.
    fn ask(&self, caller: Caller, targets: &BTreeMap<String, usize>) -> BTreeMap<String, Outcome> {
        let list: String = targets
            .iter()
            .map(|(target, wanted)| format!(" {target}={wanted}"))
            .collect();
        let script = format!(
            "for pair in{list}; do u=${{pair%=*}}; wanted=${{pair#*=}}; i=0; seen=; count=0; \
             while [ $i -lt {} ] || [ $count -lt $wanted -a $i -lt {} ]; do i=$((i+1)); \
             out=$(curl -s --connect-timeout 1 --max-time 10 $u/hostname $u/clientip); code=$?; \
             echo $u $code $out; [ $code = 0 ] || break; set -- $out; \
             name=$1; case \"$seen\" in *$name*) ;; *) seen=$seen$name; \
             count=$((count+1));; esac; done; done",
            DRAWS[0], DRAWS[1],
        );
        let command = ["sh", "-c", &script];
        let output = match caller {
            Caller::Pod => self.lab.exec_output("client", &command),
            Caller::Endpoint => self.lab.exec_output("local", &command),
            Caller::Node => self.lab.node_output("node-1", &command),
            Caller::Outside => self.lab.node_output("outside", &command),
        };
        let mut seen: BTreeMap<String, Outcome> = BTreeMap::new();
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            match line.split_whitespace().collect::<Vec<_>>()[..] {
                [target, "0", name, source] => {
                    let family = usize::from(target.contains('['));
                    let own = caller != Caller::Node && source == self.own(caller, family);
                    let outcome = seen
                        .entry(target.to_owned())
                        .or_insert_with(|| Outcome::Answered(BTreeMap::new()));
                    if let Outcome::Answered(by) = outcome {
                        by.insert(name.to_owned(), own);
                    }
                }
                // What curl says when nobody is there, and when nothing comes back.
                [target, "7"] => drop(seen.insert(target.to_owned(), Outcome::Refused)),
                [target, "28"] => drop(seen.insert(target.to_owned(), Outcome::Silence)),
                _ => panic!("{caller:?}: {line}\n{}", printed(&output)),
            }
        }
        seen
    }

    /// What all rows of one state look like.
    fn look(&self, rows: &[Row]) -> Vec<(Row, Vec<Outcome>)> {
        let answers: Vec<(Caller, BTreeMap<String, Outcome>)> = std::thread::scope(|scope| {
            let asked: Vec<_> = Caller::ALL
                .into_iter()
                .map(|caller| {
                    let own = rows.iter().filter(move |row| row.caller == caller);
                    let targets: BTreeMap<String, usize> = own
                        .flat_map(|row| {
                            let wanted = match row.rule() {
                                Outcome::Answered(by) => by.len(),
                                Outcome::Refused | Outcome::Silence => 0,
                            };
                            [0, 1].map(|family| (self.target(row.target, family), wanted))
                        })
                        .collect();
                    (caller, scope.spawn(move || self.ask(caller, &targets)))
                })
                .collect();
            asked
                .into_iter()
                .map(|(caller, answers)| (caller, answers.join().expect("it can be asked")))
                .collect()
        });
        rows.iter()
            .map(|row| {
                let (_, answers) = answers
                    .iter()
                    .find(|(caller, _)| *caller == row.caller)
                    .expect("all were asked");
                let cells = [0, 1].map(|family| answers[&self.target(row.target, family)].clone());
                (*row, cells.to_vec())
            })
            .collect()
    }
}

#[rstest]
#[case::nftables("nftables", "routed")]
#[case::iptables("iptables", "bridge")]
fn who_reaches_what_in_a_lab(#[case] proxy: &str, #[case] attach: &str) {
    let stage = Stage::up(proxy, attach);
    let mut report = Report::new(["tcp4", "tcp6"].map(str::to_owned));
    for (endpoints, policies) in [
        (Endpoints::HereAndElsewhere, &Policy::ALL[..]),
        (Endpoints::Elsewhere, &Policy::ALL[..]),
        (Endpoints::Nowhere, &[Policy::Cluster][..]),
    ] {
        for policy in policies {
            stage.tell(*policy, endpoints);
            // The lab's agents permit no external addresses: see the other matrix.
            let rows: Vec<Row> = Row::of(endpoints, *policy)
                .filter(|row| row.target != Target::ExternalIp)
                .collect();
            let wrong = |seen: &[(Row, Vec<Outcome>)]| -> Vec<String> {
                seen.iter()
                    .filter(|(row, cells)| cells.iter().any(|cell| *cell != row.rule()))
                    .map(|(row, cells)| format!("{row:?}: {} but {cells:?}", row.rule()))
                    .collect()
            };
            let what = format!("{proxy}: {policy:?}, {endpoints:?}");
            let seen = eventually(&what, PATIENCE, || {
                let seen = stage.look(&rows);
                match wrong(&seen) {
                    wrong if wrong.is_empty() => Ok(seen),
                    wrong => Err(wrong.join("\n")),
                }
            });
            for (row, cells) in seen {
                report.add(&row, &cells);
            }
        }
    }
    report.finish(&format!("a lab, {proxy}, pods {attach}"));
}
