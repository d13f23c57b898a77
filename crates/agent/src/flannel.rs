//! A cluster that changes from flannel to podwire node by node: what flannel's
//! nodes say of themselves, and what they have to know of this one.
//!
//! Both stands in annotations of Node objects (flannel, `pkg/subnet/kube`). On the
//! wire the back ends of the same name are the same.

use std::collections::BTreeMap;
use std::net::IpAddr;

use api::meta::{FLANNEL_ANNOTATIONS, Labels};
use routing::data::VxlanData;
use routing::model::MacAddress;
use routing::{Family, NodeData, PerFamily};
use serde::{Deserialize, Serialize};

use crate::cluster::Member;

/// Back ends that are the same on the wire under the same name.
const SHARED: [&str; 3] = ["vxlan", "host-gw", "ipip"];
/// Its UDP port unless somebody chose another, which its nodes do not tell.
const PORT: u16 = 8472;
/// Names behind [`FLANNEL_ANNOTATIONS`]: that flannel takes the node's range from
/// the Node object, the back end, and of each family its data and the address.
const MANAGED: &str = "kube-subnet-manager";
const TYPE: &str = "backend-type";
const DATA: [&str; 2] = ["backend-data", "backend-v6-data"];
const ADDRESS: [&str; 2] = ["public-ip", "public-ipv6"];

/// What a node of flannel tells of a tunnel's end (flannel, `pkg/backend/vxlan`).
#[derive(Serialize, Deserialize)]
struct TunnelEnd {
    #[serde(rename = "VNI")]
    vni: u32,
    #[serde(rename = "VtepMAC")]
    mac: String,
}

fn get<'a>(annotations: &'a Labels, name: &str) -> Option<&'a str> {
    let value = annotations.get(&*format!("{FLANNEL_ANNOTATIONS}{name}"))?;
    Some(value)
}

/// How a node of flannel is reached; `None` for a node that is none, or whose back
/// end podwire does not have.
pub(crate) fn read(annotations: &Labels) -> Option<NodeData> {
    if get(annotations, MANAGED)? != "true" {
        return None;
    }
    let kind = get(annotations, TYPE)?;
    let way = *SHARED.iter().find(|way| **way == kind)?;
    let mut data = NodeData {
        ways: vec![way.into()],
        ..NodeData::default()
    };
    if way == "vxlan" {
        let ends = DATA.map(|name| -> Option<(u32, MacAddress)> {
            let end: TunnelEnd = serde_json::from_str(get(annotations, name)?).ok()?;
            let mac: MacAddress = end.mac.parse().ok()?;
            mac.is_unicast().then_some((end.vni, mac))
        });
        let (vni, _) = ends.into_iter().flatten().next()?;
        let [v4, v6] = ends.map(|end| end.map(|(_, mac)| mac));
        data.vxlan = Some(VxlanData {
            vni,
            port: PORT,
            mac: PerFamily { v4, v6 },
        });
    }
    Some(data)
}

/// The addresses on the underlay a node of flannel names.
pub(crate) fn addresses(annotations: &Labels) -> impl Iterator<Item = IpAddr> {
    ADDRESS
        .map(|name| get(annotations, name)?.parse().ok())
        .into_iter()
        .flatten()
}

/// The annotations by which nodes of flannel reach this one. `ways` are the back ends
/// of those there are; one of these this node has to have, too.
pub(crate) fn tell<'a>(
    own: &Member,
    mut ways: impl Iterator<Item = &'a Box<str>>,
    data: &NodeData,
) -> BTreeMap<String, String> {
    let mut told = BTreeMap::new();
    let Some(way) = ways.find(|way| data.ways.contains(way)) else {
        return told;
    };
    let mut set = |name: &str, value: String| {
        told.insert(format!("{FLANNEL_ANNOTATIONS}{name}"), value);
    };
    set(MANAGED, "true".to_owned());
    set(TYPE, way.to_string());
    for (index, family) in Family::BOTH.into_iter().enumerate() {
        let mut addresses = own.addresses.iter();
        let Some(address) = addresses.find(|address| Family::of(**address) == family) else {
            continue;
        };
        set(ADDRESS[index], address.to_string());
        let end = data.vxlan.as_ref().filter(|_| &**way == "vxlan");
        let end = end.and_then(|vxlan| {
            let mac = vxlan.mac.get(family)?.to_string();
            let vni = vxlan.vni;
            serde_json::to_string(&TunnelEnd { vni, mac }).ok()
        });
        set(DATA[index], end.unwrap_or_else(|| "null".to_owned()));
    }
    told
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        let name = |name: &str| format!("{FLANNEL_ANNOTATIONS}{name}").into();
        pairs
            .iter()
            .map(|(key, value)| (name(key), (*value).into()))
            .collect()
    }

    const END: &str = r#"{"VNI":1,"VtepMAC":"82:4b:b6:2f:54:4e"}"#;

    #[test]
    fn a_node_of_flannel_says_where_its_tunnel_ends() {
        let annotations = labels(&[
            (MANAGED, "true"),
            (TYPE, "vxlan"),
            ("backend-data", END),
            ("public-ip", "192.168.64.12"),
        ]);
        let data = read(&annotations).expect("a node of flannel");
        assert_eq!(data.ways, ["vxlan".into()]);
        let vxlan = data.vxlan.expect("an end");
        assert_eq!((vxlan.vni, vxlan.port), (1, 8472));
        let mac = vxlan.mac.v4.map(|mac| mac.to_string());
        assert_eq!(mac.as_deref(), Some("82:4b:b6:2f:54:4e"));
        assert_eq!(vxlan.mac.v6, None);
        let addresses: Vec<_> = addresses(&annotations).collect();
        assert_eq!(addresses, ["192.168.64.12".parse::<IpAddr>().unwrap()]);
    }

    #[rstest]
    #[case::nothing(&[], None)]
    #[case::not_of_the_api(&[(MANAGED, "false"), (TYPE, "host-gw")], None)]
    #[case::direct(&[(MANAGED, "true"), (TYPE, "host-gw"), ("backend-data", "null")], Some("host-gw"))]
    #[case::ipip(&[(MANAGED, "true"), (TYPE, "ipip")], Some("ipip"))]
    #[case::another_protocol(&[(MANAGED, "true"), (TYPE, "wireguard")], None)]
    #[case::nonsense(&[(MANAGED, "true"), (TYPE, "vxlan"), ("backend-data", "{")], None)]
    #[case::no_address(&[(MANAGED, "true"), (TYPE, "vxlan"),
        ("backend-data", r#"{"VNI":1,"VtepMAC":"01:00:00:00:00:00"}"#)], None)]
    fn only_back_ends_podwire_has_are_taken_up(
        #[case] annotations: &[(&str, &str)],
        #[case] expected: Option<&str>,
    ) {
        let data = read(&labels(annotations));
        let way = data.as_ref().and_then(|data| data.ways.first());
        assert_eq!(way.map(|way| &**way), expected);
    }

    #[test]
    fn nodes_of_flannel_read_of_this_one_what_they_write_themselves() {
        let own = read(&labels(&[
            (MANAGED, "true"),
            (TYPE, "vxlan"),
            ("backend-data", END),
        ]));
        let member = Member {
            addresses: vec!["192.168.64.11".parse().unwrap()],
            ..Member::default()
        };
        let data = own.expect("data");
        let told = tell(&member, std::iter::empty(), &data);
        assert_eq!(told, BTreeMap::new(), "nobody asks");
        let told = tell(&member, data.ways.iter(), &data);
        let told: Labels = told
            .into_iter()
            .map(|(name, value)| (name.into(), value.into()))
            .collect();
        let expected = labels(&[
            (MANAGED, "true"),
            (TYPE, "vxlan"),
            ("backend-data", END),
            ("public-ip", "192.168.64.11"),
        ]);
        assert_eq!(told, expected);
    }
}
