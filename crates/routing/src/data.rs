//! What a node tells its peers about its back ends, and reads of theirs.
//!
//! How it gets from node to node is not routing's business; the text form is
//! JSON. Fields a reader does not know are passed over, so that nodes of
//! different versions understand each other.

use linux::link::MacAddress;
use linux::wireguard::PublicKey;
use serde::{Deserialize, Serialize};

use crate::model::PerFamily;

/// What a node tells its peers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeData {
    /// Names of the back ends it takes packets by and can send by, the
    /// preferred one first.
    pub ways: Vec<Box<str>>,
    /// The largest packet its underlay carries, bytes, for each family.
    #[serde(skip_serializing_if = "is_default")]
    pub mtu: PerFamily<u32>,
    /// Of its back end `vxlan`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vxlan: Option<VxlanData>,
    /// Of its back end `vxlan-gpe`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vxlan_gpe: Option<VxlanGpeData>,
    /// Of its back end `wireguard`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wireguard: Option<WireguardData>,
}

/// Of the back end `vxlan`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VxlanData {
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP port.
    pub port: u16,
    /// Hardware address of its tunnel end, for each family of the underlay.
    #[serde(with = "macs")]
    pub mac: PerFamily<MacAddress>,
}

/// Of the back end `vxlan-gpe`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VxlanGpeData {
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP port.
    pub port: u16,
}

/// Of the back end `wireguard`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WireguardData {
    /// Its public key.
    #[serde(with = "key")]
    pub public_key: PublicKey,
    /// UDP port.
    pub port: u16,
}

/// A public key as text.
mod key {
    use linux::wireguard::PublicKey;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(
        key: &PublicKey,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(key)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<PublicKey, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(Error::custom)
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Hardware addresses as text.
mod macs {
    use linux::link::MacAddress;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::model::PerFamily;

    pub(super) fn serialize<S: Serializer>(
        macs: &PerFamily<MacAddress>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let texts = PerFamily {
            v4: macs.v4.map(|mac| mac.to_string()),
            v6: macs.v6.map(|mac| mac.to_string()),
        };
        texts.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<PerFamily<MacAddress>, D::Error> {
        let texts = PerFamily::<String>::deserialize(deserializer)?;
        let parse = |text: Option<String>| {
            let mac = text.map(|text| text.parse::<MacAddress>()).transpose();
            let mac = mac.map_err(Error::custom)?;
            match mac.filter(|mac| !mac.is_unicast()) {
                Some(mac) => Err(Error::custom(format!("{mac} is no unicast address"))),
                None => Ok(mac),
            }
        };
        Ok(PerFamily {
            v4: parse(texts.v4)?,
            v6: parse(texts.v6)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_form_is_stable_and_unknown_fields_are_passed_over() {
        let mac = MacAddress([0x0a, 1, 2, 3, 4, 5]);
        let data = NodeData {
            ways: vec!["vxlan".into(), "host-gw".into()],
            mtu: PerFamily {
                v4: Some(1500),
                v6: None,
            },
            vxlan: Some(VxlanData {
                vni: 1,
                port: 8472,
                mac: PerFamily {
                    v4: Some(mac),
                    v6: None,
                },
            }),
            ..NodeData::default()
        };
        let text = serde_json::to_string(&data).unwrap();
        assert_eq!(
            text,
            r#"{"ways":["vxlan","host-gw"],"mtu":{"v4":1500},"vxlan":{"vni":1,"port":8472,"mac":{"v4":"0a:01:02:03:04:05"}}}"#
        );
        assert_eq!(serde_json::from_str::<NodeData>(&text).unwrap(), data);
        let newer = text.replacen('{', r#"{"news":{"a":1},"#, 1);
        assert_eq!(serde_json::from_str::<NodeData>(&newer).unwrap(), data);
        assert_eq!(
            serde_json::from_str::<NodeData>("{}").unwrap(),
            NodeData::default()
        );
    }

    #[test]
    fn an_address_no_device_can_have_is_refused() {
        for mac in ["01:02:03:04:05:06", "00:00:00:00:00:00", "nonsense"] {
            let text = format!(r#"{{"vxlan":{{"vni":1,"port":1,"mac":{{"v4":"{mac}"}}}}}}"#);
            assert!(serde_json::from_str::<NodeData>(&text).is_err(), "{mac}");
        }
    }
}
