//! The plugin on a kernel that lacks what an attach mode is made of.
#![allow(clippy::unwrap_used, reason = "tests say what they expect with unwrap")]

mod common;

use vm::Guest;

#[test]
fn a_kernel_that_lacks_a_kind_of_device_is_named_and_nothing_is_left_behind() {
    let report = Guest::new()
        .without_module("veth")
        .without_module("macvlan")
        .program(env!("CARGO_BIN_EXE_podwire-cni"))
        .run_cases_in_machine("guest::")
        .unwrap_or_else(|error| panic!("{error}"));
    print!("{report}");
}

mod guest {
    use linux::link;
    use rstest::rstest;
    use serde_json::json;

    use super::common::{Node, Pod};

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
