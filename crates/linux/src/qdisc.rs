//! Queueing disciplines: how fast a link sends, and where received packets go.
//!
//! Sources: `include/uapi/linux/rtnetlink.h` (`struct tcmsg`),
//! `include/uapi/linux/pkt_sched.h`, `include/uapi/linux/pkt_cls.h`,
//! `include/uapi/linux/tc_act/tc_mirred.h`.

use netlink_packet_core::{DecodeError, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NlasIterator};

use crate::netlink::{Error, Message, Request, Socket};

const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
const TCA_U32_SEL: u16 = 5;
const TCA_U32_ACT: u16 = 7;
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_MIRRED_PARMS: u16 = 2;
/// `TC_H_ROOT`: what a link sends.
const ROOT: u32 = 0xffff_ffff;
/// `TC_H_INGRESS`: what it receives.
const INGRESS: u32 = 0xffff_fff1;
/// Handle of the ingress discipline, `ffff:`.
const INGRESS_HANDLE: u32 = 0xffff_0000;
/// Handle given to token buckets, `1:`.
const BUCKET_HANDLE: u32 = 0x0001_0000;
/// `TC_LINKLAYER_ETHERNET`: the kernel counts by itself, without a table.
const ETHERNET: u8 = 1;
/// `TC_ACT_STOLEN`.
const STOLEN: i32 = 4;
/// `TCA_EGRESS_REDIR`.
const REDIRECT: i32 = 1;
/// `TC_U32_TERMINAL`.
const TERMINAL: u8 = 1;
/// `ETH_P_ALL`.
const ALL_PROTOCOLS: u16 = 3;
const NESTED: u16 = 0x8000;
/// Length of `struct tcmsg`.
const HEADER: usize = 20;

/// A token bucket filter (`tbf`): packets beyond the rate wait, those beyond
/// the queue are dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenBucket {
    /// Bytes a second.
    pub rate: u64,
    /// Bytes that may go at once after a pause; at least a full packet with its
    /// link-layer header.
    pub burst: u32,
    /// Bytes that may wait.
    pub limit: u32,
}

/// A queueing discipline as the kernel lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Qdisc {
    /// Index of the link.
    pub link: u32,
    /// Kind: `tbf`, `ingress`, ….
    pub kind: String,
    /// Whether all that the link sends passes it.
    pub root: bool,
    /// Of a token bucket: bytes a second.
    pub rate: Option<u64>,
}

fn header(link: u32, handle: u32, parent: u32, info: u32) -> Vec<u8> {
    let mut body = vec![0; 4];
    for word in [link, handle, parent, info] {
        body.extend(word.to_ne_bytes());
    }
    body
}

fn put(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(value.len() + 4).expect("attributes here are below 64 KiB");
    body.extend(length.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

fn nest(body: &mut Vec<u8>, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) {
    let mut inside = Vec::new();
    fill(&mut inside);
    put(body, kind | NESTED, &inside);
}

/// Makes what a link sends pass a token bucket.
pub fn set_token_bucket(link: u32, bucket: &TokenBucket) -> Request {
    let mut body = header(link, BUCKET_HANDLE, ROOT, 0);
    put(&mut body, TCA_KIND, b"tbf\0");
    nest(&mut body, TCA_OPTIONS, |options| {
        // struct tc_tbf_qopt: two struct tc_ratespec, limit, buffer, mtu.
        let mut parameters = vec![0; 36];
        parameters[1] = ETHERNET;
        let rate = u32::try_from(bucket.rate).unwrap_or(u32::MAX);
        parameters[8..12].copy_from_slice(&rate.to_ne_bytes());
        parameters[24..28].copy_from_slice(&bucket.limit.to_ne_bytes());
        put(options, TCA_TBF_PARMS, &parameters);
        put(options, TCA_TBF_RATE64, &bucket.rate.to_ne_bytes());
        put(options, TCA_TBF_BURST, &bucket.burst.to_ne_bytes());
    });
    Request::new(
        format!(
            "limit what link {link} sends to {} bytes a second",
            bucket.rate
        ),
        RTM_NEWQDISC,
        NLM_F_CREATE | NLM_F_REPLACE,
        body,
    )
}

/// Gives a link the `ingress` discipline, to which filters for received packets
/// are attached.
pub fn add_ingress(link: u32) -> Request {
    let mut body = header(link, INGRESS_HANDLE, INGRESS, 0);
    put(&mut body, TCA_KIND, b"ingress\0");
    Request::new(
        format!("add the ingress discipline to link {link}"),
        RTM_NEWQDISC,
        NLM_F_CREATE | NLM_F_EXCL,
        body,
    )
}

/// Sends all that a link with [`add_ingress`] receives through another, an IFB,
/// before it is received.
pub fn redirect_received(link: u32, to: u32) -> Request {
    let priority = 1 << 16;
    let mut body = header(
        link,
        0,
        INGRESS_HANDLE,
        priority | u32::from(ALL_PROTOCOLS.to_be()),
    );
    put(&mut body, TCA_KIND, b"u32\0");
    nest(&mut body, TCA_OPTIONS, |options| {
        // struct tc_u32_sel with one key that everything matches.
        let mut selector = vec![0; 16 + 16];
        selector[0] = TERMINAL;
        selector[2] = 1;
        put(options, TCA_U32_SEL, &selector);
        nest(options, TCA_U32_ACT, |actions| {
            nest(actions, 1, |action| {
                put(action, TCA_ACT_KIND, b"mirred\0");
                nest(action, TCA_ACT_OPTIONS, |options| {
                    // struct tc_mirred: tc_gen (index, capab, action, refcnt,
                    // bindcnt), eaction, ifindex.
                    let mut mirred = vec![0; 28];
                    mirred[8..12].copy_from_slice(&STOLEN.to_ne_bytes());
                    mirred[20..24].copy_from_slice(&REDIRECT.to_ne_bytes());
                    mirred[24..28].copy_from_slice(&to.to_ne_bytes());
                    put(options, TCA_MIRRED_PARMS, &mirred);
                });
            });
        });
    });
    Request::new(
        format!("send what link {link} receives through link {to}"),
        RTM_NEWTFILTER,
        NLM_F_CREATE | NLM_F_EXCL,
        body,
    )
}

impl Qdisc {
    /// Whether filters can be attached to it that see what the link receives.
    pub fn has_filters(&self) -> bool {
        ["ingress", "clsact"].contains(&&*self.kind)
    }
}

/// The disciplines of a link.
pub fn list(socket: &mut Socket, link: u32) -> Result<Vec<Qdisc>, Error> {
    let mut found = list_all(socket)?;
    found.retain(|qdisc| qdisc.link == link);
    Ok(found)
}

/// The disciplines of all links.
pub fn list_all(socket: &mut Socket) -> Result<Vec<Qdisc>, Error> {
    let request = Request::new(
        "list the queueing disciplines".to_owned(),
        RTM_GETQDISC,
        0,
        header(0, 0, 0, 0),
    );
    socket.dump(request, decode)
}

/// Whether a route netlink message tells of a discipline, and if so whether of one
/// that is there (`true`) or gone.
pub(crate) fn notification(message_type: u16) -> Option<bool> {
    match message_type {
        RTM_NEWQDISC => Some(true),
        RTM_DELQDISC => Some(false),
        _ => None,
    }
}

fn decode(message: Message<'_>) -> Result<Option<Qdisc>, DecodeError> {
    if message.message_type != RTM_NEWQDISC {
        return Ok(None);
    }
    parse(message.payload).map(Some)
}

pub(crate) fn parse(payload: &[u8]) -> Result<Qdisc, DecodeError> {
    let Some((header, attributes)) = payload.split_at_checked(HEADER) else {
        return Err(DecodeError::from(
            "a queueing discipline's message shorter than its header",
        ));
    };
    let mut qdisc = Qdisc {
        link: netlink_packet_core::parse_u32(&header[4..8])?,
        kind: String::new(),
        root: netlink_packet_core::parse_u32(&header[12..16])? == ROOT,
        rate: None,
    };
    let mut options = None;
    for attribute in NlasIterator::new(attributes) {
        let attribute = attribute?;
        match attribute.kind() & !NESTED {
            TCA_KIND => {
                qdisc.kind = String::from_utf8_lossy(attribute.value())
                    .trim_end_matches('\0')
                    .to_owned();
            }
            TCA_OPTIONS => options = Some(attribute.value().to_vec()),
            _ => {}
        }
    }
    if let ("tbf", Some(options)) = (qdisc.kind.as_str(), options) {
        for attribute in NlasIterator::new(&options) {
            let attribute = attribute?;
            let value = attribute.value();
            match attribute.kind() {
                TCA_TBF_PARMS if value.len() >= 12 => {
                    let rate = netlink_packet_core::parse_u32(&value[8..12])?;
                    qdisc.rate.get_or_insert(u64::from(rate));
                }
                TCA_TBF_RATE64 => qdisc.rate = Some(netlink_packet_core::parse_u64(value)?),
                _ => {}
            }
        }
    }
    Ok(qdisc)
}
