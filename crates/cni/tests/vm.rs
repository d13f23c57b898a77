//! The plugin on a kernel that lacks what an attach mode is made of, and the guard of
//! bridges on one that may be too old for it.
#![allow(clippy::unwrap_used, reason = "tests say what they expect with unwrap")]

mod common;

use vm::Guest;

#[test]
fn what_a_kernel_lacks_is_named_and_nothing_is_left_behind() {
    let report = Guest::new()
        .without_module("veth")
        .without_module("macvlan")
        // What a table of bridges looks at; a machine loads it by itself.
        .module("nft_meta_bridge")
        .program(env!("CARGO_BIN_EXE_podwire-cni"))
        .run_cases_in_machine("guest::")
        .unwrap_or_else(|error| panic!("{error}"));
    print!("{report}");
}

mod guest {
    use cni::bridge_guard::{self, Holding};
    use linux::link;
    use linux::nftables::{Family, Nftables};
    use podwire_cni as cni;
    use rstest::rstest;
    use serde_json::json;

    use super::common::{Node, Pod};

    /// Whether the kernel is as new as tables that outlive who holds them.
    fn holds_tables() -> bool {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        let mut numbers = release.split('.').map(|part| part.parse::<u32>().unwrap());
        (numbers.next(), numbers.next()) >= (Some(6), Some(9))
    }

    #[test]
    #[ignore = "run in a guest by the test above"]
    fn a_table_is_held_whole_or_not_at_all() {
        let node = Node::new();
        let hold = || bridge_guard::hold(node.state.path()).unwrap();
        let held = node.namespace.run(hold).unwrap();
        let tables = node.namespace.run(|| {
            let mut nftables = Nftables::open().unwrap();
            nftables.tables(Family::Bridge).unwrap()
        });
        let tables = tables.unwrap();
        assert_eq!(
            bridge_guard::is_held(node.state.path(), &node.namespace),
            holds_tables()
        );
        match held {
            Holding::Held(_) => {
                assert!(holds_tables());
                assert_eq!(tables, [bridge_guard::TABLE]);
            }
            Holding::Impossible(error) => {
                assert!(!holds_tables(), "{error}");
                assert!(tables.is_empty(), "{tables:?}");
            }
            Holding::Taken => panic!("nobody else is here"),
        }
    }

    #[rstest]
    #[case("bridge", "veth devices", "veth")]
    #[case("routed", "veth devices", "veth")]
    #[case("macvlan", "macvlan devices", "macvlan")]
    #[ignore = "run in a guest by the test above"]
    fn an_add_says_what_is_missing(
        #[case] attach: &str,
        #[case] feature: &str,
        #[case] module: &str,
    ) {
        let node = Node::new();
        let mut configuration = node.configuration(attach);
        if attach == "macvlan" {
            // Any link will do for a parent: it is never reached.
            let mut socket = node.namespace.route_socket().unwrap();
            let parent = link::Bridge {
                name: "parent",
                ..link::Bridge::default()
            };
            socket.execute(&link::add_bridge(&parent)).unwrap();
            configuration["master"] = json!("parent");
        }
        let pod = Pod::new("one");
        let outcome = node.call("ADD", &configuration, &pod);
        assert_eq!(outcome.code(), 100, "{outcome:?}");
        let message = outcome.stdout["msg"].as_str().unwrap();
        let expected = format!(
            "this kernel has no {feature}; load the module {module} (`modprobe {module}`) or run \
             a kernel that has it"
        );
        assert!(message.ends_with(&expected), "{message}");
        assert_eq!(node.call("DEL", &configuration, &pod).ok(), json!(null));
        let mut socket = node.namespace.route_socket().unwrap();
        link::delete_by_name(&mut socket, "parent").unwrap();
        node.assert_clean();
    }
}
