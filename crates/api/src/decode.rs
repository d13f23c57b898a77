//! Lenient decoding: what the API server may leave out, write as `null`, or
//! carry along from before its validation became stricter.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Deserializer};

/// Reads an IP address as Kubernetes has always read it.
///
/// Differs from the standard library in one thing: leading zeros in the parts
/// of an IPv4 address are allowed and the number is still decimal, because
/// objects with such addresses were valid for years and are still stored in
/// clusters (k8s.io/utils/net `ParseIPSloppy`, KEP-4858). An IPv4 address
/// written as an IPv4-mapped IPv6 address is returned as IPv4.
///
/// Returns `None` for anything that is no address.
pub fn parse_address(text: &str) -> Option<IpAddr> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(address.to_canonical());
    }
    let mut octets = [0_u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        if part.is_empty() || !part.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let significant = part.trim_start_matches('0');
        *octet = if significant.is_empty() {
            0
        } else {
            significant.parse().ok()?
        };
    }
    parts
        .next()
        .is_none()
        .then_some(IpAddr::V4(Ipv4Addr::from(octets)))
}

/// One address; absent, empty and unreadable are all `None`.
pub(crate) fn address<'de, D: Deserializer<'de>>(from: D) -> Result<Option<IpAddr>, D::Error> {
    let text = Option::<Cow<'de, str>>::deserialize(from)?;
    Ok(text.and_then(|text| parse_address(&text)))
}

/// `null` means the default: Go writes a nil slice or map without `omitempty`
/// so (EndpointSlice's `endpoints` is one).
pub(crate) fn null_default<'de, D, T>(from: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::plain("10.0.0.1", Some("10.0.0.1"))]
    #[case::leading_zeros_are_decimal("010.001.000.099", Some("10.1.0.99"))]
    #[case::six("fd00::1", Some("fd00::1"))]
    #[case::mapped_is_four("::ffff:10.0.0.1", Some("10.0.0.1"))]
    #[case::none("None", None)]
    #[case::empty("", None)]
    #[case::three_parts("10.0.1", None)]
    #[case::five_parts("1.2.3.4.5", None)]
    #[case::too_big("10.0.0.256", None)]
    #[case::sign("10.0.0.+1", None)]
    #[case::huge("10.0.0.00000000000000000000000000000000999", None)]
    fn addresses_are_read_as_kubernetes_reads_them(
        #[case] text: &str,
        #[case] expected: Option<&str>,
    ) {
        let expected = expected.map(|text| text.parse::<IpAddr>().unwrap());
        assert_eq!(parse_address(text), expected);
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in ".*") {
            let _ = parse_address(&text);
        }
    }
}
