//! Questions and answers on the wire.

use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinEncodable, BinEncoder};

use crate::lookup::Answer;

/// Bytes of a message's header (RFC 1035 4.1.1).
const HEADER: usize = 12;
/// The size every client takes (RFC 1035 2.3.4).
const PLAIN_SIZE: u16 = 512;
/// The largest answer sent by UDP: fits the smallest IPv6 MTU unfragmented
/// (the DNS flag day 2020's number).
pub const LARGEST_DATAGRAM: u16 = 1232;
/// Bytes a record takes at least: a pointer, type, class, time to live, length
/// (RFC 1035 4.1.3).
const SMALLEST_RECORD: usize = 12;
/// Bytes of the OPT record of our answers: no options.
const OPT_SIZE: u16 = 11;

/// A question that can be answered.
#[derive(Clone, Debug)]
pub struct Request {
    /// Header of the message.
    pub metadata: Metadata,
    /// The question.
    pub query: Query,
    /// EDNS of the client, if it speaks it.
    pub edns: Option<ClientEdns>,
}

/// What a client says by EDNS (RFC 6891).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientEdns {
    /// The largest answer it takes by UDP.
    pub payload: u16,
    /// It wants signatures (RFC 3225).
    pub dnssec_ok: bool,
    /// Its version; only 0 exists.
    pub version: u8,
}

impl Request {
    /// The largest answer by UDP.
    #[must_use]
    pub fn datagram_size(&self) -> u16 {
        self.edns.map_or(PLAIN_SIZE, |edns| {
            edns.payload.clamp(PLAIN_SIZE, LARGEST_DATAGRAM)
        })
    }

    /// Whether the client wants signatures.
    #[must_use]
    pub fn dnssec_ok(&self) -> bool {
        self.edns.is_some_and(|edns| edns.dnssec_ok)
    }
}

/// Why a message is no question for us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// Nothing is sent: too short, or itself an answer.
    Silence,
    /// This is sent.
    Reply(Vec<u8>),
}

/// Reads a question.
///
/// # Errors
/// When the message is none that can be answered.
pub fn read(bytes: &[u8]) -> Result<Request, Unusable> {
    if bytes.len() < HEADER || bytes[2] & 0x80 != 0 {
        // Answering an answer makes two servers talk to each other for ever.
        return Err(Unusable::Silence);
    }
    let refuse = |code| Err(Unusable::Reply(refusal(bytes, code)));
    // Opcode: the rest of a message that is no query may mean anything.
    if bytes[2] & 0x78 != 0 {
        return refuse(ResponseCode::NotImp);
    }
    let Ok(mut message) = Message::from_vec(bytes) else {
        return refuse(ResponseCode::FormErr);
    };
    let edns = message.edns.as_ref().map(|edns| ClientEdns {
        payload: edns.max_payload(),
        dnssec_ok: edns.flags().dnssec_ok,
        version: edns.version(),
    });
    let (Some(query), true) = (message.queries.pop(), message.queries.is_empty()) else {
        return refuse(ResponseCode::FormErr);
    };
    let request = Request {
        metadata: message.metadata,
        query,
        edns,
    };
    if edns.is_some_and(|edns| edns.version > 0) {
        return Err(Unusable::Reply(write(
            &request,
            &plain(ResponseCode::BADVERS),
            usize::from(request.datagram_size()),
        )));
    }
    Ok(request)
}

/// The header alone, with an error.
fn refusal(request: &[u8], code: ResponseCode) -> Vec<u8> {
    let mut reply = vec![0; HEADER];
    reply[..2].copy_from_slice(&request[..2]);
    // QR, the opcode and RD as they came.
    reply[2] = 0x80 | (request[2] & 0x79);
    reply[3] = code.low();
    reply
}

/// An answer that is a response code and nothing else.
#[must_use]
pub fn plain(code: ResponseCode) -> Answer {
    Answer {
        code,
        answers: Vec::new(),
        authorities: Vec::new(),
        additionals: Vec::new(),
        authoritative: false,
        reason: crate::lookup::Reason::NoSuchName,
    }
}

/// Writes an answer of at most `limit` bytes. One that is longer loses its
/// additional records, then is cut and marked so (RFC 2181 9), with as many
/// records as fit: some resolvers never ask again by TCP.
#[must_use]
pub fn write(request: &Request, answer: &Answer, limit: usize) -> Vec<u8> {
    let mut message = Message::new(
        request.metadata.id,
        MessageType::Response,
        request.metadata.op_code,
    );
    message.metadata.recursion_desired = request.metadata.recursion_desired;
    message.metadata.recursion_available = true;
    message.metadata.checking_disabled = request.metadata.checking_disabled;
    message.metadata.authoritative = answer.authoritative;
    message.metadata.response_code = answer.code;
    message.add_query(request.query.clone());
    message.answers.clone_from(&answer.answers);
    mix(&mut message.answers, request.metadata.id);
    message.authorities.clone_from(&answer.authorities);
    message.additionals.clone_from(&answer.additionals);
    if let Some(edns) = request.edns {
        let mut own = Edns::new();
        own.set_max_payload(LARGEST_DATAGRAM);
        own.set_dnssec_ok(edns.dnssec_ok);
        message.edns = Some(own);
    }
    let room = limit.saturating_sub(usize::from(message.edns.as_ref().map_or(0, |_| OPT_SIZE)));
    // What cannot fit anyhow is not worth encoding.
    let most = limit / SMALLEST_RECORD;
    if message.answers.len() <= most {
        if let Some(bytes) = encode(&message, limit) {
            return bytes;
        }
        message.additionals.clear();
        if let Some(bytes) = encode(&message, limit) {
            return bytes;
        }
    }
    message.additionals.clear();
    message.answers.truncate(most + 1);
    message.metadata.truncation = true;
    message.authorities.clear();
    let mut records = std::mem::take(&mut message.answers);
    // The most records that fit, by halving.
    let (mut fits, mut too_many) = (0, records.len());
    while fits + 1 < too_many {
        let middle = usize::midpoint(fits, too_many);
        message.answers.clear();
        message.answers.extend_from_slice(&records[..middle]);
        if encode(&message, room).is_some() {
            fits = middle;
        } else {
            too_many = middle;
        }
    }
    records.truncate(fits);
    message.answers = records;
    encode(&message, limit).unwrap_or_else(|| {
        let mut header = vec![0; HEADER];
        header[..2].copy_from_slice(&request.metadata.id.to_be_bytes());
        header[2] = 0x82;
        header
    })
}

fn encode(message: &Message, limit: usize) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(PLAIN_SIZE.into());
    let mut encoder = BinEncoder::new(&mut bytes);
    message.emit(&mut encoder).ok()?;
    (bytes.len() <= limit).then_some(bytes)
}

/// Changes which of several addresses comes first, since clients take the first.
/// The id of a question is random.
fn mix(records: &mut [Record], random: u16) {
    let is_address = |record: &Record| matches!(record.data, RData::A(_) | RData::AAAA(_));
    let Some(first) = records.iter().position(is_address) else {
        return;
    };
    let addresses = &mut records[first..];
    if addresses.iter().all(is_address) {
        let by = usize::from(random) % addresses.len();
        addresses.rotate_left(by);
    }
}

/// What the server says about itself in class CHAOS: its version, as text.
#[must_use]
pub fn chaos(request: &Request) -> Answer {
    let name = request.query.name().to_ascii().to_ascii_lowercase();
    let text = match (name.as_str(), request.query.query_type()) {
        ("version.bind." | "version.server.", RecordType::TXT | RecordType::ANY) => {
            Some(concat!("podwire ", env!("CARGO_PKG_VERSION")))
        }
        _ => None,
    };
    match text {
        Some(text) => {
            let data = RData::TXT(hickory_proto::rr::rdata::TXT::new(vec![text.to_owned()]));
            let mut record = Record::from_rdata(request.query.name().clone(), 0, data);
            record.dns_class = DNSClass::CH;
            Answer {
                answers: vec![record],
                authoritative: true,
                reason: crate::lookup::Reason::Fixed("the server's version"),
                ..plain(ResponseCode::NoError)
            }
        }
        None => plain(ResponseCode::Refused),
    }
}

/// A question of our own, for an upstream server.
#[must_use]
pub fn question(id: u16, query: &Query, dnssec_ok: bool, checking_disabled: bool) -> Vec<u8> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.metadata.checking_disabled = checking_disabled;
    message.add_query(query.clone());
    let mut edns = Edns::new();
    edns.set_max_payload(LARGEST_DATAGRAM);
    edns.set_dnssec_ok(dnssec_ok);
    message.edns = Some(edns);
    message.to_vec().unwrap_or_default()
}
