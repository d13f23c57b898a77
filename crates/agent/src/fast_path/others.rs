//! What others have in the stack's way that judges packets one by one, which what
//! takes the fast path would go around: nftables and iptables rules, policy rules, and
//! policies of IPsec. Translation is no judge: it is decided with the first packet, which takes
//! the stack.

use std::collections::BTreeSet;

use ipnet::IpNet;
use linux::events::Event;
use linux::ipsec::{self, Policy};
use linux::netlink::{self, Socket};
use linux::nftables::{self, Checkpoint, Nftables};
use linux::rule::{self, Rule};

/// Tables of iptables' old kind that there are, a line each. A table is there once
/// somebody has listed or changed its rules.
const LEGACY: [(&str, &str); 2] = [
    ("iptables", "/proc/thread-self/net/ip_tables_names"),
    ("ip6tables", "/proc/thread-self/net/ip6_tables_names"),
];

/// What is known of others.
#[derive(Debug, Default)]
pub(crate) struct Others {
    /// Kept, since closing it can wait for the kernel.
    nftables: Option<Nftables>,
    /// Of the rules that `chains` are of.
    generation: Option<u32>,
    chains: Vec<Checkpoint>,
    tables: Vec<String>,
    rules: Vec<Rule>,
    /// Whether policy rules have changed.
    stale: bool,
    policies: Vec<Policy>,
    /// Whether IPsec policies have changed.
    policies_stale: bool,
}

impl Others {
    /// Nothing is known yet.
    pub(crate) fn new() -> Self {
        Self {
            stale: true,
            policies_stale: true,
            ..Self::default()
        }
    }

    /// Takes notice of a change.
    pub(crate) fn notice(&mut self, event: &Event) {
        self.stale |= match event {
            Event::Rule(rule) | Event::RuleGone(rule) => is_foreign(rule),
            Event::Lost => true,
            _ => false,
        };
        self.policies_stale |= matches!(event, Event::IpsecPolicies);
    }

    /// Reads the policy rules if they have changed; returns whether they had.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub(crate) fn read_rules(&mut self, socket: &mut Socket) -> Result<bool, netlink::Error> {
        if !self.stale {
            return Ok(false);
        }
        self.rules = rule::list(socket)?;
        self.rules.retain(is_foreign);
        self.stale = false;
        Ok(true)
    }

    /// Reads the IPsec policies if they have changed; returns whether others' are
    /// different ones.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub(crate) fn read_policies(&mut self) -> Result<bool, netlink::Error> {
        if !self.policies_stale {
            return Ok(false);
        }
        let policies = match ipsec::open()? {
            Some(mut socket) => ipsec::list(&mut socket)?,
            None => Vec::new(),
        };
        self.policies_stale = false;
        let changed = self.policies != policies;
        self.policies = policies;
        Ok(changed)
    }

    /// Looks whether the rules of nftables and iptables are still those that were
    /// read, and reads them if not; returns whether others' are different ones.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub(crate) fn look(&mut self) -> Result<bool, nftables::Error> {
        let tables = LEGACY
            .iter()
            .flat_map(|(program, path)| {
                // Kernels without them have no such file.
                let names = std::fs::read_to_string(path).unwrap_or_default();
                legacy(program, &names)
            })
            .collect();
        let mut changed = self.tables != tables;
        self.tables = tables;
        let nftables = match &mut self.nftables {
            Some(nftables) => nftables,
            none => none.insert(Nftables::open()?),
        };
        // A commit between the two is found the next time.
        let now = nftables.generation()?.id;
        if self.generation != Some(now) {
            let chains = nftables.checkpoints(is_own_table, OWN_CHAINS)?;
            changed |= self.chains != chains;
            self.chains = chains;
            self.generation = Some(now);
        }
        Ok(changed)
    }

    /// What judges packets between pods with these addresses and in these ranges.
    pub(crate) fn judges(&self, pods: impl Iterator<Item = IpNet> + Clone) -> BTreeSet<String> {
        let of_pods = |range: &IpNet| pods.clone().any(|pods| overlap(&pods, range));
        let rules = self.rules.iter().filter(|rule| of_pods(&rule.from));
        let policies = self.policies.iter();
        let policies = policies.filter(|policy| of_pods(&policy.from) && of_pods(&policy.to));
        rules
            .map(|rule| format!("policy rule {rule}"))
            .chain(policies.map(ToString::to_string))
            .chain(self.chains.iter().map(ToString::to_string))
            .chain(self.tables.iter().cloned())
            .collect()
    }
}

/// What chains of the iptables proxy begin with.
const OWN_CHAINS: &str = "PODWIRE-";

/// Whether a table of nftables' families `inet` and `bridge` is one of podwire's.
fn is_own_table(name: &str) -> bool {
    name.strip_prefix("podwire")
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
}

fn is_foreign(rule: &Rule) -> bool {
    ![linux::PODWIRE_ROUTE_PROTOCOL, rule::KERNEL].contains(&rule.protocol)
}

fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
}

/// Tables of old iptables that see packets after the first one of a connection.
fn legacy(program: &str, names: &str) -> Vec<String> {
    names
        .lines()
        .filter(|name| *name != "nat")
        .map(|name| format!("table {name} of {program}-legacy"))
        .collect()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn rule(from: &str, protocol: u8) -> Rule {
        Rule {
            protocol,
            ..Rule::new(100, net(from), 5)
        }
    }

    #[rstest]
    #[case::of_a_node("192.0.2.1/32", false)]
    #[case::of_all("0.0.0.0/0", true)]
    #[case::of_all_in_the_other_family("::/0", true)]
    #[case::of_own_pods("10.1.0.0/16", true)]
    #[case::of_a_pod("10.1.1.7/32", true)]
    #[case::of_pods_of_peers("fd00:2::/48", true)]
    fn policy_rules_judge_what_comes_from_where_they_say(#[case] from: &str, #[case] judges: bool) {
        let others = Others {
            rules: vec![rule(from, 3)],
            ..Others::default()
        };
        let own = ["10.1.1.0/24", "fd00:1::/64"].map(net);
        let peers = ["10.1.2.0/24", "fd00:2::/64"].map(net);
        let found = others.judges(own.into_iter().chain(peers));
        assert_eq!(!found.is_empty(), judges, "{found:?}");
    }

    #[rstest]
    #[case::of_nodes("192.0.2.1/32", "192.0.2.2/32", false)]
    #[case::of_pods("10.1.1.7/32", "10.1.2.0/24", true)]
    #[case::of_peers_pods("10.1.2.0/24", "10.1.0.0/16", true)]
    #[case::of_pods_to_elsewhere("10.1.1.0/24", "198.51.100.0/24", false)]
    #[case::of_all("::/0", "::/0", true)]
    fn ipsec_policies_judge_what_goes_from_pods_to_pods(
        #[case] from: &str,
        #[case] to: &str,
        #[case] judges: bool,
    ) {
        let policy = Policy {
            direction: ipsec::Direction::Out,
            from: net(from),
            to: net(to),
        };
        let others = Others {
            policies: vec![policy],
            ..Others::default()
        };
        let pods = ["10.1.1.0/24", "fd00:1::/64", "10.1.2.0/24", "fd00:2::/64"];
        let found = others.judges(pods.map(net).into_iter());
        assert_eq!(!found.is_empty(), judges, "{found:?}");
    }

    #[test]
    fn rules_of_the_kernel_and_of_podwire_are_no_others() {
        assert!(is_foreign(&rule("0.0.0.0/0", 3)));
        assert!(!is_foreign(&rule("0.0.0.0/0", rule::KERNEL)));
        assert!(!is_foreign(&Rule::new(1120, net("10.1.1.0/24"), 1120)));
    }

    #[test]
    fn podwires_tables_are_known_by_their_names() {
        let own = [
            "podwire",
            "podwire_hostports",
            "podwire_routing",
            "podwire_bridge",
        ];
        assert!(own.into_iter().all(is_own_table));
        assert!(
            !["podwires", "filter", "firewalld"]
                .into_iter()
                .any(is_own_table)
        );
    }

    #[test]
    fn old_tables_but_that_of_translations_judge() {
        assert!(legacy("iptables", "nat\n").is_empty());
        let found = legacy("ip6tables", "nat\nfilter\nmangle\n");
        let expected = [
            "table filter of ip6tables-legacy",
            "table mangle of ip6tables-legacy",
        ];
        assert_eq!(found, expected);
    }
}
