//! Judges what was read of a node. Pure.

use std::fmt;

use serde::Serialize;

use super::facts::{Facts, PROTOCOL, Part};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    /// Pods cannot talk, or soon will not.
    Error,
    /// Some traffic suffers, or will when something else changes.
    Warning,
    /// Worth knowing; nothing suffers.
    Note,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Level::Error => "error",
            Level::Warning => "warning",
            Level::Note => "note",
        })
    }
}

/// Something found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// Which check found it.
    pub(super) check: &'static str,
    /// How bad it is.
    pub(super) level: Level,
    /// What is so.
    pub(super) what: String,
    /// Why that matters.
    pub(super) why: String,
    /// What to do.
    pub(super) todo: String,
}

/// Share of the connections there may be, in percent, from which on it is worth
/// a word.
const NEARLY_FULL: u64 = 80;

/// All that is found, the worst first.
pub(super) fn examine(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    agent(facts, &mut findings);
    configuration(facts, &mut findings);
    settings(facts, &mut findings);
    mtu(facts, &mut findings);
    routes(facts, &mut findings);
    connections(facts, &mut findings);
    kernel(facts, &mut findings);
    findings.sort_by_key(|finding| finding.level);
    findings
}

fn agent(facts: &Facts, findings: &mut Vec<Finding>) {
    let health = match &facts.agent {
        Ok(health) => health,
        Err(error) => {
            findings.push(Finding {
                check: "agent",
                level: Level::Error,
                what: format!("the agent does not answer: {error}"),
                why: "what is there goes on working, but nothing new reaches this node: no pods \
                      of other nodes, no Services"
                    .into(),
                todo:
                    "look whether it runs (kubectl -n kube-system get pods -o wide) and what its \
                       log says; --health if it serves elsewhere"
                        .into(),
            });
            return;
        }
    };
    if !health.healthy {
        findings.push(Finding {
            check: "agent",
            level: Level::Error,
            what: "the agent has not been able to apply what is wanted for two minutes".into(),
            why: "changes of nodes and Services do not reach this node".into(),
            todo: "see what it reports below, and its log".into(),
        });
    }
    findings.extend(health.problems.iter().map(|problem| Finding {
        check: "agent",
        level: Level::Warning,
        what: problem.clone(),
        why: "the agent reports it as standing in the way of what is wanted".into(),
        todo: "as it says; the report goes when the cause is gone".into(),
    }));
}

fn configuration(facts: &Facts, findings: &mut Vec<Finding>) {
    if facts.configuration.is_none() {
        findings.push(Finding {
            check: "cni-configuration",
            level: Level::Error,
            what: "podwire's CNI configuration is not there".into(),
            why: "the container runtime attaches no pods with podwire; the agent writes it when \
                  all else is in force for the first time"
                .into(),
            todo: "see what keeps the agent; where another project attaches pods \
                   (--no-cni-conf) this is as it should be"
                .into(),
        });
    }
    for other in facts.others.iter() {
        let path = other.path.display();
        findings.push(if other.first && facts.configuration.is_some() {
            Finding {
                check: "cni-configuration",
                level: Level::Error,
                what: format!("{path} comes before podwire's CNI configuration"),
                why: "container runtimes take the first by name: new pods get another network"
                    .into(),
                todo: format!("remove {path} and make the pods anew that were started with it"),
            }
        } else {
            Finding {
                check: "cni-configuration",
                level: Level::Note,
                what: format!("there is another CNI configuration: {path}"),
                why: "it would be taken if podwire's were gone".into(),
                todo: "remove it unless it is meant to be there".into(),
            }
        });
    }
}

fn settings(facts: &Facts, findings: &mut Vec<Finding>) {
    let value = |name: &str| {
        let found = facts.settings.iter().find(|(known, _)| known == name);
        found.and_then(|(_, value)| *value)
    };
    for (name, family) in [
        ("net.ipv4.ip_forward", "IPv4"),
        ("net.ipv6.conf.all.forwarding", "IPv6"),
    ] {
        if value(name) == Some(0) {
            findings.push(Finding {
                check: "forwarding",
                level: Level::Error,
                what: format!("{name} is 0"),
                why: format!("the node drops {family} packets that are not its own: all of pods'"),
                todo: format!(
                    "sysctl -w {name}=1, and find out who turned it off (files in /etc/sysctl.d)"
                ),
            });
        }
    }
    let all = value("net.ipv4.conf.all.rp_filter").unwrap_or(0);
    for (name, own) in &facts.settings {
        let of_interface = name.ends_with(".rp_filter") && !name.contains(".all.");
        if of_interface && own.is_some_and(|own| own.max(all) == 1) {
            findings.push(Finding {
                check: "reverse-path-filter",
                level: Level::Warning,
                what: format!("the reverse path filter is strict: {name} and that of all"),
                why: "answers that come in by another interface than the kernel would ask through \
                      are dropped without a word (RFC 3704)"
                    .into(),
                todo: format!("sysctl -w {name}=2"),
            });
        }
    }
    let bridged = facts
        .configuration
        .as_ref()
        .is_some_and(|configuration| configuration.attach == "bridge");
    for name in [
        "net.bridge.bridge-nf-call-iptables",
        "net.bridge.bridge-nf-call-ip6tables",
    ] {
        if bridged && value(name) != Some(1) {
            findings.push(Finding {
                check: "br-netfilter",
                level: Level::Warning,
                what: match value(name) {
                    None => format!("the kernel has no {name}"),
                    Some(_) => format!("{name} is off"),
                },
                why: "rules of others that look at frames between pods of one bridge see nothing; \
                      podwire's own Services do not need it, since bridged pods are routed"
                    .into(),
                todo: "modprobe br_netfilter and turn it on if such rules are in use, or use \
                       --attach routed"
                    .into(),
            });
        }
    }
}

fn mtu(facts: &Facts, findings: &mut Vec<Finding>) {
    let wanted = facts.configuration.as_ref().and_then(|found| found.mtu);
    let Some(wanted) = wanted else {
        return;
    };
    for pod in facts.pods.iter().filter(|pod| pod.mtu != wanted) {
        let who = match &pod.pod {
            Some(pod_name) => format!("pod {pod_name} (link {})", pod.name),
            None => format!("the pod of link {}", pod.name),
        };
        let larger = pod.mtu > wanted;
        findings.push(Finding {
            check: "mtu",
            level: if larger { Level::Warning } else { Level::Note },
            what: format!("{who} has an older MTU: {}, new pods get {wanted}", pod.mtu),
            why: if larger {
                "its large packets do not fit into the way to other nodes; it depends on ICMP \
                 errors to learn that"
            } else {
                "its packets are smaller than they could be"
            }
            .into(),
            todo: "make the pod anew when convenient (kubectl rollout restart)".into(),
        });
    }
}

fn routes(facts: &Facts, findings: &mut Vec<Finding>) {
    let own = || {
        facts
            .routes
            .iter()
            .filter(|route| route.protocol == PROTOCOL)
    };
    for route in &facts.routes {
        if route.protocol == PROTOCOL || route.own_interface {
            continue;
        }
        let within = own().find(|own| own.destination.contains(&route.destination));
        if let Some(own) = within {
            findings.push(Finding {
                check: "foreign-routes",
                level: Level::Warning,
                what: format!(
                    "a route of others is in podwire's range {}: {}",
                    own.destination, route.text
                ),
                why: "the more exact route wins: packets for pods there go another way".into(),
                todo: "find out who made it (ip route show, its proto) and remove it".into(),
            });
        }
    }
}

fn connections(facts: &Facts, findings: &mut Vec<Finding>) {
    let Some((count, most)) = facts.connections.filter(|(_, most)| *most > 0) else {
        return;
    };
    let percent = count.saturating_mul(100) / most;
    if percent >= NEARLY_FULL {
        findings.push(Finding {
            check: "connection-tracking",
            level: if percent >= 100 {
                Level::Error
            } else {
                Level::Warning
            },
            what: format!("{count} of at most {most} connections are tracked ({percent} %)"),
            why: "when the table is full new connections are dropped".into(),
            todo: format!(
                "sysctl -w net.netfilter.nf_conntrack_max={}, and find out who opens so many \
                 (conntrack -L)",
                most.saturating_mul(2)
            ),
        });
    }
}

fn kernel(facts: &Facts, findings: &mut Vec<Finding>) {
    findings.extend(facts.lacking.iter().map(|(part, why)| {
        Finding {
            check: "kernel",
            level: Level::Note,
            what: match part {
                Part::Backend(name) => format!("this node cannot have the back end {name}"),
                Part::Proxy(name) => format!("this node cannot have the proxy {name}"),
                Part::FastPath => "this node cannot have the fast path".to_owned(),
            },
            why: why.clone(),
            todo: match part {
                Part::Backend(_) | Part::Proxy(_) => {
                    "nothing, as long as another one is used; else as it says"
                }
                Part::FastPath => {
                    "nothing: all packets take the kernel's IP stack, which is slower"
                }
            }
            .into(),
        }
    }));
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::super::facts::{Configuration, Health, Other, PodLink, RouteFact};
    use super::*;

    fn healthy() -> Facts {
        let set = |name: &str, value| (name.to_owned(), Some(value));
        Facts {
            agent: Ok(health(true, &[])),
            configuration: Some(Configuration {
                attach: "bridge".into(),
                mtu: Some(1450),
            }),
            others: Vec::new(),
            settings: vec![
                set("net.ipv4.ip_forward", 1),
                set("net.ipv6.conf.all.forwarding", 1),
                set("net.ipv4.conf.all.rp_filter", 0),
                set("net.ipv4.conf.eth0.rp_filter", 2),
                set("net.bridge.bridge-nf-call-iptables", 1),
                set("net.bridge.bridge-nf-call-ip6tables", 1),
            ],
            pods: vec![pod(1450)],
            routes: vec![route("10.200.2.0/24", PROTOCOL, false)],
            connections: Some((10, 1000)),
            lacking: Vec::new(),
        }
    }

    fn health(healthy: bool, problems: &[&str]) -> Health {
        Health {
            healthy,
            problems: problems.iter().map(ToString::to_string).collect(),
        }
    }

    fn pod(mtu: u32) -> PodLink {
        PodLink {
            name: "pw0123".into(),
            pod: Some("default/web".into()),
            mtu,
        }
    }

    fn route(destination: &str, protocol: u8, own_interface: bool) -> RouteFact {
        RouteFact {
            destination: destination.parse().unwrap(),
            protocol,
            own_interface,
            text: destination.to_owned(),
        }
    }

    fn other(first: bool) -> Other {
        Other {
            path: "05-other.conf".into(),
            first,
        }
    }

    fn set(facts: &mut Facts, name: &str, value: Option<i64>) {
        facts.settings.retain(|(known, _)| known != name);
        facts.settings.push((name.to_owned(), value));
    }

    #[test]
    fn a_healthy_node_has_no_findings() {
        assert_eq!(examine(&healthy()), []);
    }

    #[rstest]
    #[case::no_agent(|f: &mut Facts| f.agent = Err("refused".into()), "agent", Level::Error)]
    #[case::stuck(|f: &mut Facts| f.agent = Ok(health(false, &[])), "agent", Level::Error)]
    #[case::reported(|f: &mut Facts| f.agent = Ok(health(true, &["p"])), "agent", Level::Warning)]
    #[case::not_ready(|f: &mut Facts| { f.configuration = None; f.pods.clear() }, "cni-configuration", Level::Error)]
    #[case::outvoted(|f: &mut Facts| f.others.push(other(true)), "cni-configuration", Level::Error)]
    #[case::not_alone(|f: &mut Facts| f.others.push(other(false)), "cni-configuration", Level::Note)]
    #[case::no_forwarding(|f: &mut Facts| set(f, "net.ipv4.ip_forward", Some(0)), "forwarding", Level::Error)]
    #[case::no_forwarding6(|f: &mut Facts| set(f, "net.ipv6.conf.all.forwarding", Some(0)), "forwarding", Level::Error)]
    #[case::strict(|f: &mut Facts| set(f, "net.ipv4.conf.eth0.rp_filter", Some(1)), "reverse-path-filter", Level::Warning)]
    #[case::no_br_netfilter(|f: &mut Facts| set(f, "net.bridge.bridge-nf-call-iptables", None), "br-netfilter", Level::Warning)]
    #[case::old_large_mtu(|f: &mut Facts| f.pods.push(pod(1500)), "mtu", Level::Warning)]
    #[case::old_small_mtu(|f: &mut Facts| f.pods.push(pod(1400)), "mtu", Level::Note)]
    #[case::foreign(|f: &mut Facts| f.routes.push(route("10.200.2.128/25", 4, false)), "foreign-routes", Level::Warning)]
    #[case::nearly_full(|f: &mut Facts| f.connections = Some((850, 1000)), "connection-tracking", Level::Warning)]
    #[case::full(|f: &mut Facts| f.connections = Some((1000, 1000)), "connection-tracking", Level::Error)]
    #[case::no_backend(|f: &mut Facts| f.lacking.push((Part::Backend("ipip"), "no module".into())), "kernel", Level::Note)]
    #[case::no_fast_path(|f: &mut Facts| f.lacking.push((Part::FastPath, "no BTF".into())), "kernel", Level::Note)]
    #[case::no_proxy(|f: &mut Facts| f.lacking.push((Part::Proxy("ipvs"), "no module".into())), "kernel", Level::Note)]
    fn each_trouble_is_found_by_its_check(
        #[case] cause: fn(&mut Facts),
        #[case] check: &str,
        #[case] level: Level,
    ) {
        let mut facts = healthy();
        cause(&mut facts);
        let findings = examine(&facts);
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert_eq!((findings[0].check, findings[0].level), (check, level));
    }

    #[test]
    fn routes_to_pods_of_this_node_and_elsewhere_are_not_foreign() {
        let mut facts = healthy();
        facts.routes.push(route("10.200.2.7/32", 2, true));
        facts.routes.push(route("192.0.2.0/24", 4, false));
        facts.routes.push(route("0.0.0.0/0", 4, false));
        assert_eq!(examine(&facts), []);
    }

    #[test]
    fn an_ipv6_less_kernel_is_fine() {
        let mut facts = healthy();
        set(&mut facts, "net.ipv6.conf.all.forwarding", None);
        assert_eq!(examine(&facts), []);
    }

    #[test]
    fn the_worst_comes_first() {
        let mut facts = healthy();
        facts.others.push(other(false));
        facts.pods.push(pod(1500));
        facts.agent = Err("refused".into());
        let levels: Vec<Level> = examine(&facts).iter().map(|f| f.level).collect();
        assert_eq!(levels, [Level::Error, Level::Warning, Level::Note]);
    }
}
