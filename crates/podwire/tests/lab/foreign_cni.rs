//! A lab on another project's CNI plugins.

use crate::support::{Lab, client, server, url};

const CONFLIST: &str = r#"{
  "cniVersion": "0.4.0",
  "name": "reference",
  "plugins": [
    {
      "type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
      "ipam": {
        "type": "host-local",
        "ranges": [[{"subnet": "10.200.0.0/24"}], [{"subnet": "fd00:200::/64"}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
      }
    },
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}"#;

#[test]
fn the_reference_plugins_of_the_distribution_carry_a_labs_pods() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(directory.path().join("10-reference.conflist"), CONFLIST)
        .expect("the configuration is written");
    let lab = Lab::up(
        &[
            "--nodes",
            "1",
            "--cni-conf",
            &directory.path().to_string_lossy(),
            "--cni-bin",
            "/usr/lib/cni",
        ],
        &[
            client("client", "node-1"),
            server("server", "server", "node-1"),
        ]
        .concat(),
    );
    let addresses = lab.pod_addresses("server");
    assert_eq!(addresses.len(), 2, "{addresses:?}");
    for address in addresses {
        let answer = lab.exec(
            "client",
            &[
                "curl",
                "-sS",
                "--max-time",
                "5",
                &url(&address, 8080, "/hostname"),
            ],
        );
        assert_eq!(answer.trim(), "server");
    }
    // The pod's interface hangs on that plugin's bridge, not on podwire's.
    let links = lab.node("node-1", &["ip", "-o", "link", "show", "master", "cni0"]);
    assert_eq!(links.lines().count(), 2, "{links}");
}
