//! nftables against the kernel, with `nft -j` as the witness. Needs root; each
//! test makes its own network namespace, which goes with it.

use std::process::Command;

use podwire_linux::namespace::NetworkNamespace;
use podwire_linux::nftables::{
    Base, Batch, Chain, ChainKind, Comparison, Conntrack, DataType, Element, Error, Expression,
    Family, FibAddress, Found, Header, Hook, Meta, NAT_FULLY_RANDOM, NatFamily, Nftables,
    RTN_LOCAL, Register, Reject, Rule, Set, Verdict, ct_state, priority, push_field, render_chain,
    render_set,
};
use rstest::rstest;
use serde_json::Value as Json;

const TABLE: &str = "probe";

struct Probe {
    namespace: NetworkNamespace,
    nft: Nftables,
}

impl Probe {
    fn new() -> Self {
        let namespace = NetworkNamespace::create().expect("tests need root");
        let nft = namespace
            .run(Nftables::open)
            .expect("entered")
            .expect("a kernel with nf_tables");
        let mut probe = Self { namespace, nft };
        let mut batch = probe.batch();
        batch.add_table();
        probe.nft.commit(batch).expect("an empty table");
        probe
    }

    fn batch(&self) -> Batch {
        Batch::new(Family::Inet, TABLE, None)
    }

    /// The objects of a kind that `nft -j` lists.
    fn listed(&self, kind: &str) -> Vec<Json> {
        let output = self
            .namespace
            .run(|| Command::new("nft").args(["-j", "list", "ruleset"]).output())
            .expect("entered")
            .expect("nft is installed");
        assert!(output.status.success(), "{output:?}");
        let listing: Json = serde_json::from_slice(&output.stdout).expect("JSON");
        listing["nftables"]
            .as_array()
            .expect("a list")
            .iter()
            .filter_map(|object| object.get(kind).cloned())
            .collect()
    }
}

/// One rule with every expression that may stand together, in pieces.
fn rules() -> Vec<Rule> {
    let mut loopback = b"lo".to_vec();
    loopback.resize(16, 0);
    vec![
        Rule::new(vec![
            Expression::Meta {
                key: Meta::NetworkFamily,
                into: Register(15),
            },
            Expression::equal(Register(15), [2]),
            Expression::Payload {
                header: Header::Network,
                offset: 16,
                length: 4,
                into: Register(0),
            },
            Expression::Lookup {
                set: "addresses".to_owned(),
                from: Register(0),
                found: Found::Absence,
            },
            Expression::Counter,
            Expression::Verdict(Verdict::Drop),
        ])
        .comment("a comment"),
        Rule::new(vec![
            Expression::Meta {
                key: Meta::TransportProtocol,
                into: Register(3),
            },
            Expression::equal(Register(3), [6]),
            Expression::Reject(Reject::TcpReset),
        ]),
        Rule::new(vec![
            Expression::Conntrack {
                key: Conntrack::State,
                into: Register(0),
            },
            Expression::Bitwise {
                from: Register(0),
                into: Register(0),
                mask: ct_state::INVALID.to_ne_bytes().to_vec(),
                xor: vec![0; 4],
            },
            Expression::Compare {
                comparison: Comparison::NotEqual,
                from: Register(0),
                value: vec![0; 4],
            },
            Expression::Reject(Reject::PortUnreachable),
        ]),
        Rule::new(vec![
            Expression::Meta {
                key: Meta::Protocol,
                into: Register(0),
            },
            Expression::equal(Register(0), [0x81, 0x00]),
            Expression::Verdict(Verdict::Accept),
        ]),
        Rule::new(vec![
            Expression::FibType {
                address: FibAddress::Source,
                into: Register(0),
            },
            Expression::equal(Register(0), RTN_LOCAL.to_ne_bytes()),
            Expression::Verdict(Verdict::Jump("target".to_owned())),
        ]),
        Rule::new(vec![
            Expression::Meta {
                key: Meta::NetworkFamily,
                into: Register(15),
            },
            Expression::equal(Register(15), [2]),
            Expression::Payload {
                header: Header::Network,
                offset: 16,
                length: 4,
                into: Register(0),
            },
            Expression::RandomNumber {
                modulus: 3,
                offset: 7,
                into: Register(1),
            },
            Expression::Lookup {
                set: "targets".to_owned(),
                from: Register(0),
                found: Found::Data(Register(4)),
            },
            Expression::DestinationNat {
                family: NatFamily::V4,
                address: Register(4),
                port: Some(Register(5)),
            },
        ]),
        Rule::new(vec![
            Expression::Meta {
                key: Meta::Mark,
                into: Register(0),
            },
            Expression::Lookup {
                set: "verdicts".to_owned(),
                from: Register(0),
                found: Found::Verdict,
            },
        ]),
        Rule::new(vec![
            Expression::Meta {
                key: Meta::TransportProtocol,
                into: Register(15),
            },
            Expression::equal(Register(15), [17]),
            Expression::Payload {
                header: Header::Network,
                offset: 12,
                length: 4,
                into: Register(0),
            },
            Expression::Update {
                set: "seen".to_owned(),
                key: Register(0),
                data: None,
                timeout: 5000,
            },
        ]),
    ]
}

fn postrouting() -> Chain {
    Chain {
        name: "post".to_owned(),
        base: Some(Base {
            kind: ChainKind::Nat,
            hook: Hook::Postrouting,
            priority: priority::SRCNAT,
            drop: false,
        }),
        rules: vec![Rule::new(vec![
            Expression::Meta {
                key: Meta::OutInterfaceName,
                into: Register(0),
            },
            Expression::Compare {
                comparison: Comparison::NotEqual,
                from: Register(0),
                value: {
                    let mut name = b"lo".to_vec();
                    name.resize(16, 0);
                    name
                },
            },
            Expression::Masquerade {
                flags: NAT_FULLY_RANDOM,
            },
        ])],
    }
}

fn sets() -> Vec<Set> {
    vec![
        Set::of_values("addresses", &[DataType::Ipv4Address]),
        Set::ranges("ranges", DataType::Ipv6Address),
        Set::map(
            "targets",
            &[DataType::Ipv4Address, DataType::Number],
            &[DataType::Ipv4Address, DataType::Port],
        ),
        Set::verdict_map("verdicts", &[DataType::Number]),
        Set {
            dynamic: true,
            size: Some(1000),
            ..Set::of_values("seen", &[DataType::Ipv4Address])
        },
    ]
}

/// A table with all of the above.
fn filled() -> Probe {
    let mut probe = Probe::new();
    let mut batch = probe.batch();
    for set in sets() {
        batch.add_set(&set);
    }
    let target = Chain {
        name: "target".to_owned(),
        base: None,
        rules: Vec::new(),
    };
    let first = Chain {
        name: "pre".to_owned(),
        base: Some(Base {
            kind: ChainKind::Nat,
            hook: Hook::Prerouting,
            priority: priority::DSTNAT,
            drop: false,
        }),
        rules: rules(),
    };
    for chain in [target, first, postrouting()] {
        batch.add_chain_with_rules(&chain);
    }
    let mut key = Vec::new();
    push_field(&mut key, &[10, 0, 0, 1]);
    push_field(&mut key, &7u32.to_ne_bytes());
    let mut value = Vec::new();
    push_field(&mut value, &[10, 0, 0, 2]);
    push_field(&mut value, &8080u16.to_be_bytes());
    batch.add_elements("targets", &[Element::pair(key, value)]);
    batch.add_elements(
        "verdicts",
        &[Element::verdict(
            1u32.to_ne_bytes().to_vec(),
            Verdict::Goto("target".to_owned()),
        )],
    );
    let network: std::net::Ipv6Addr = "fd00:1::".parse().expect("a literal");
    let after: std::net::Ipv6Addr = "fd00:1:0:1::".parse().expect("a literal");
    batch.add_elements(
        "ranges",
        &[
            Element::key(network.octets().to_vec()),
            Element::range_end(after.octets().to_vec()),
        ],
    );
    probe.nft.commit(batch).expect("the kernel takes all");
    probe
}

#[test]
fn what_is_written_is_what_is_read() {
    let mut probe = filled();
    let live = probe.nft.rules(Family::Inet, TABLE).expect("readable");
    let pre: Vec<Vec<Expression>> = live
        .iter()
        .filter(|rule| rule.chain == "pre")
        .map(|rule| rule.expressions.clone().expect("all ours"))
        .collect();
    let wanted: Vec<Vec<Expression>> = rules().into_iter().map(|rule| rule.expressions).collect();
    assert_eq!(pre, wanted);
    let live = probe.nft.sets(Family::Inet, TABLE).expect("readable");
    for set in sets() {
        let live = live.iter().find(|l| l.name == set.name).expect("listed");
        assert!(live.matches(&set), "{live:?} is not {set:?}");
    }
    let chains = probe.nft.chains(Family::Inet, TABLE).expect("readable");
    let post = chains.iter().find(|c| c.name == "post").expect("listed");
    assert_eq!(post.base, postrouting().base);
}

#[test]
fn nft_lists_what_was_written() {
    let probe = filled();
    let chains = probe.listed("chain");
    let post = chains.iter().find(|c| c["name"] == "post").expect("listed");
    assert_eq!(
        (&post["type"], &post["hook"], &post["prio"]),
        (&"nat".into(), &"postrouting".into(), &100.into())
    );
    let maps = probe.listed("map");
    let targets = maps
        .iter()
        .find(|m| m["name"] == "targets")
        .expect("listed");
    assert_eq!(
        targets["elem"].to_string(),
        r#"[[{"concat":["10.0.0.1",7]},{"concat":["10.0.0.2",8080]}]]"#
    );
    let ranges = &probe.listed("set");
    let ranges = ranges
        .iter()
        .find(|s| s["name"] == "ranges")
        .expect("listed");
    assert_eq!(
        ranges["elem"].to_string(),
        r#"[{"prefix":{"addr":"fd00:1::","len":64}}]"#
    );
    let rules = probe.listed("rule");
    assert_eq!(rules.len(), 9);
    assert_eq!(rules[0]["comment"], "a comment");
}

#[test]
fn our_text_is_what_nft_prints_and_takes() {
    let probe = filled();
    let text = |name: &str| {
        let output = probe
            .namespace
            .run(|| {
                Command::new("nft")
                    .args(["list", name, "inet", TABLE])
                    .arg(if name == "chain" { "post" } else { "ranges" })
                    .output()
            })
            .expect("entered")
            .expect("nft is installed");
        String::from_utf8(output.stdout).expect("text")
    };
    let ours = render_chain(&postrouting(), &sets()).replace("priority 100", "priority srcnat");
    assert_eq!(text("chain"), format!("table inet {TABLE} {{\n{ours}}}\n"));
    let chain = Chain {
        name: "pre".to_owned(),
        base: None,
        rules: rules(),
    };
    assert_eq!(
        render_chain(&chain, &sets()),
        "\tchain pre {\n\
         \t\tmeta nfproto ipv4 ip daddr != @addresses counter drop comment \"a comment\"\n\
         \t\tmeta l4proto tcp reject with tcp reset\n\
         \t\tct state invalid reject with icmpx type port-unreachable\n\
         \t\tmeta protocol 8021q accept\n\
         \t\tfib saddr type local jump target\n\
         \t\tmeta nfproto ipv4 dnat ip to ip daddr . numgen random mod 3 offset 7 map @targets\n\
         \t\tmeta mark vmap @verdicts\n\
         \t\tmeta l4proto udp update @seen { ip saddr timeout 5000ms }\n\
         \t}\n"
    );
    let network: std::net::Ipv6Addr = "fd00:1::".parse().expect("a literal");
    let after: std::net::Ipv6Addr = "fd00:1::5".parse().expect("a literal");
    let elements = [
        Element::key(network.octets().to_vec()),
        Element::range_end(after.octets().to_vec()),
    ];
    assert_eq!(
        render_set(&sets()[1], &elements),
        "\tset ranges {\n\t\ttype ipv6_addr\n\t\tflags interval\n\
         \t\telements = { fd00:1::-fd00:1::4 }\n\t}\n"
    );
}

#[test]
fn many_elements_go_in_one_batch_and_come_back() {
    let mut probe = Probe::new();
    let set = Set::map(
        "many",
        &[DataType::Ipv4Address, DataType::Port],
        &[DataType::Number],
    );
    let elements: Vec<Element> = (0..20_000u32)
        .map(|n| {
            let mut key = Vec::new();
            push_field(&mut key, &n.to_be_bytes());
            push_field(&mut key, &80u16.to_be_bytes());
            Element::pair(key, n.to_ne_bytes().to_vec())
        })
        .collect();
    let mut batch = probe.batch();
    batch.add_set(&set);
    batch.add_elements("many", &elements);
    assert!(
        batch.len() > 9 * 64 * 1024,
        "longer than one attribute holds"
    );
    assert_eq!(batch.elements(), elements.len());
    probe.nft.commit(batch).expect("the kernel takes it");
    let mut live = probe
        .nft
        .elements(Family::Inet, TABLE, "many")
        .expect("readable");
    live.sort_by(|a, b| a.key.cmp(&b.key));
    assert_eq!(live, elements);
    let sets = probe.nft.sets(Family::Inet, TABLE).expect("readable");
    // Where the kernel says how many there are, it says so.
    assert!(matches!(sets[0].elements, None | Some(20_000)), "{sets:?}");
    let mut batch = probe.batch();
    batch.delete_elements("many", &elements[1..]);
    probe.nft.commit(batch).expect("the kernel takes it");
    let live = probe.nft.elements(Family::Inet, TABLE, "many");
    assert_eq!(live.expect("readable"), elements[..1]);
}

#[rstest]
#[case::element_twice(
    |batch: &mut Batch| batch.add_elements("addresses", &[
        Element::key(vec![10, 0, 0, 1]), Element::key(vec![10, 0, 0, 2]), Element::key(vec![10, 0, 0, 2])]),
    "adding elements to addresses of table inet probe, element 0a000002")]
#[case::element_not_there(
    |batch: &mut Batch| batch.delete_elements("addresses", &[Element::key(vec![10, 0, 0, 9])]),
    "deleting elements of addresses of table inet probe, element 0a000009")]
#[case::chain_in_use(|batch: &mut Batch| batch.delete_chain("target"), "deleting chain target of table inet probe")]
#[case::no_such_chain(
    |batch: &mut Batch| batch.add_rule("nowhere", &Rule::new(vec![Expression::Counter])),
    "adding a rule to chain nowhere of table inet probe")]
#[case::rule_with_unknown_set(
    |batch: &mut Batch| batch.add_rule("target", &Rule::new(vec![
        Expression::Counter,
        Expression::Meta { key: Meta::Mark, into: Register(0) },
        Expression::Lookup { set: "nothing".to_owned(), from: Register(0), found: Found::Membership },
    ])),
    "adding a rule to chain target of table inet probe, expression lookup")]
#[case::no_such_set(|batch: &mut Batch| batch.delete_set("nothing"), "deleting set nothing of table inet probe")]
fn a_refusal_names_the_object_and_nothing_is_done(
    #[case] wrong: fn(&mut Batch),
    #[case] expected: &str,
) {
    let mut probe = filled();
    let before = probe.nft.generation().expect("readable");
    let mut batch = probe.batch();
    batch.add_elements("addresses", &[Element::key(vec![10, 9, 9, 9])]);
    wrong(&mut batch);
    batch.add_elements("addresses", &[Element::key(vec![10, 9, 9, 8])]);
    let error = probe.nft.commit(batch).expect_err("it is wrong");
    assert!(error.to_string().starts_with(expected), "{error}");
    assert!(error.errno().is_some());
    let left = probe.nft.elements(Family::Inet, TABLE, "addresses");
    assert!(left.expect("readable").is_empty(), "nothing of the batch");
    assert_eq!(probe.nft.generation().expect("readable").id, before.id);
    // The socket is as good as before.
    let mut batch = probe.batch();
    batch.add_elements("addresses", &[Element::key(vec![10, 9, 9, 9])]);
    probe.nft.commit(batch).expect("the kernel takes it");
}

#[test]
fn a_loop_of_chains_is_refused_as_a_whole() {
    let mut probe = filled();
    let mut batch = probe.batch();
    let back = Rule::new(vec![Expression::Verdict(Verdict::Jump("pre2".to_owned()))]);
    batch.add_chain(&Chain {
        name: "pre2".to_owned(),
        base: None,
        rules: Vec::new(),
    });
    batch.add_rule("target", &back);
    let forth = Rule::new(vec![Expression::Verdict(Verdict::Jump(
        "target".to_owned(),
    ))]);
    batch.add_rule("pre2", &forth);
    let error = probe.nft.commit(batch).expect_err("a loop");
    assert!(matches!(error, Error::Refused { .. }), "{error}");
    let mut batch = probe.batch();
    batch.add_elements("addresses", &[Element::key(vec![10, 9, 9, 9])]);
    probe.nft.commit(batch).expect("the kernel takes it");
}

#[test]
fn a_batch_for_an_older_generation_is_refused() {
    let mut probe = filled();
    let generation = probe.nft.generation().expect("readable");
    let ours = std::fs::read_link("/proc/thread-self").expect("our own");
    assert!(
        ours.ends_with(generation.process.to_string()),
        "{generation:?} is not {ours:?}"
    );
    let name = std::fs::read_to_string("/proc/thread-self/comm").expect("our own");
    assert_eq!(generation.process_name, name.trim_end());
    let element = [Element::key(vec![10, 9, 9, 9])];
    let mut right = Batch::new(Family::Inet, TABLE, Some(generation.id));
    right.add_elements("addresses", &element);
    probe.nft.commit(right).expect("nobody else committed");
    let mut late = Batch::new(Family::Inet, TABLE, Some(generation.id));
    late.delete_elements("addresses", &element);
    let error = probe.nft.commit(late).expect_err("somebody committed");
    assert!(matches!(error, Error::GenerationChanged), "{error}");
    assert_eq!(
        probe.nft.generation().expect("readable").id,
        generation.id.wrapping_add(1)
    );
}

/// Runs a program inside the namespace, with input.
fn witness(namespace: &NetworkNamespace, program: &str, arguments: &[&str], input: &str) {
    use std::io::Write as _;
    let output = namespace.run(|| {
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .expect("it is installed");
        let mut stdin = child.stdin.take().expect("piped");
        stdin.write_all(input.as_bytes()).expect("it reads");
        drop(stdin);
        child.wait_with_output().expect("it ends")
    });
    let output = output.expect("entered");
    assert!(output.status.success(), "{program} {input}: {output:?}");
}

fn checkpoints(probe: &mut Probe) -> Vec<String> {
    let found = probe.nft.checkpoints(|table| table == TABLE, "OWN-");
    let found = found.expect("readable");
    found.iter().map(ToString::to_string).collect()
}

#[rstest]
#[case::input("ip x", "type filter hook input priority 0; policy drop;", "", false)]
#[case::nothing_said("ip x", "type filter hook forward priority 0;", "", false)]
#[case::policy("ip x", "type filter hook forward priority 0; policy drop;", "", true)]
#[case::rule("ip6 x", "type filter hook forward priority 0;", "counter", true)]
#[case::before_routing(
    "inet x",
    "type filter hook prerouting priority -300;",
    "udp dport 1 notrack",
    true
)]
#[case::after_routing(
    "inet x",
    "type filter hook postrouting priority 0;",
    "ip ttl set 1",
    true
)]
#[case::translation(
    "ip x",
    "type nat hook prerouting priority -100;",
    "tcp dport 1 redirect to 2",
    false
)]
#[case::established_first(
    "inet x",
    "type filter hook forward priority 0; policy drop;",
    "ct state established,related counter accept; drop",
    false
)]
#[case::established_later(
    "inet x",
    "type filter hook forward priority 0; policy drop;",
    "ip saddr 192.0.2.1 drop; ct state established accept",
    true
)]
#[case::new_first(
    "inet x",
    "type filter hook forward priority 0; policy drop;",
    "ct state new,related accept",
    true
)]
#[case::not_established(
    "inet x",
    "type filter hook forward priority 0;",
    "ct state != established accept",
    true
)]
#[case::to_chains_of_ours("inet x", "type filter hook forward priority 0;", "jump OWN-a", false)]
#[case::to_others("inet x", "type filter hook forward priority 0;", "jump a", true)]
#[case::own_table("inet probe", "type filter hook forward priority 0;", "drop", false)]
#[case::bridge("bridge x", "type filter hook forward priority 0;", "drop", true)]
#[case::own_bridge("bridge probe", "type filter hook forward priority 0;", "drop", false)]
#[case::arriving(
    "netdev x",
    "type filter hook ingress device lo priority 0;",
    "drop",
    true
)]
fn rules_that_judge_packets_of_established_connections_are_found(
    #[case] table: &str,
    #[case] hook: &str,
    #[case] rules: &str,
    #[case] found: bool,
) {
    let mut probe = Probe::new();
    let rules = rules.replace("; ", "\n");
    let text = format!(
        "table {table} {{
            chain OWN-a {{
            }}
            chain a {{
            }}
            chain c {{
                {hook}
                {rules}
            }}
        }}"
    );
    witness(&probe.namespace, "nft", &["-f", "-"], &text);
    let expected = found.then(|| format!("chain c of table {table}"));
    assert_eq!(checkpoints(&mut probe), Vec::from_iter(expected));
}

#[test]
fn rules_of_iptables_judge_packets_too() {
    let mut probe = Probe::new();
    let mut iptables = |arguments: &str| {
        let arguments: Vec<_> = arguments.split(' ').collect();
        witness(&probe.namespace, "iptables-nft", &arguments, "");
        checkpoints(&mut probe)
    };
    let none = Vec::<String>::new();
    let forward = ["chain FORWARD of table ip filter"];
    assert_eq!(iptables("-A INPUT -j DROP"), none);
    assert_eq!(iptables("-N OWN-FORWARD"), none);
    assert_eq!(iptables("-A FORWARD -j OWN-FORWARD"), none);
    assert_eq!(iptables("-A FORWARD -s 192.0.2.1 -j DROP"), forward);
    assert_eq!(iptables("-D FORWARD -s 192.0.2.1 -j DROP"), none);
    assert_eq!(iptables("-P FORWARD DROP"), forward);
}
