//! nf_tables over netlink (`linux/netfilter/nf_tables.h`): tables, chains and the handful of expressions our
//! rules are made of. Numbers in attributes are big-endian; register contents are as the packet has them.

use std::net::Ipv4Addr;

use super::Socket;
use super::message::{Message, NLM_F_APPEND, NLM_F_CREATE};
use super::socket::Result;

const NFPROTO_IPV4: u8 = 2;
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;

const NFT_MSG_NEWTABLE: u16 = 0;
const NFT_MSG_DELTABLE: u16 = 2;
const NFT_MSG_NEWCHAIN: u16 = 3;
const NFT_MSG_NEWRULE: u16 = 6;

const NFTA_TABLE_NAME: u16 = 1;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;

const NFT_REG_VERDICT: u32 = 0;
const NFT_REG_1: u32 = 1;
const NFT_CMP_EQ: u32 = 0;
const NFT_CMP_NEQ: u32 = 1;
const NFT_META_IIFNAME: u32 = 6;
const NFT_META_OIFNAME: u32 = 7;
const NFT_META_L4PROTO: u32 = 16;
const NFT_PAYLOAD_NETWORK_HEADER: u32 = 1;
const NFT_PAYLOAD_TRANSPORT_HEADER: u32 = 2;
const NFT_CT_STATE: u32 = 0;
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;
/// Established and related, as bits of `ct state`.
const CT_ESTABLISHED_OR_RELATED: u32 = 1 << 1 | 1 << 2;
/// Offset of the source address in an IPv4 header; the destination follows it.
const IPV4_SOURCE: u32 = 12;
const IPV4_DESTINATION: u32 = 16;
/// Offset of the destination port in TCP and UDP headers.
const DESTINATION_PORT: u32 = 2;
/// Names of interfaces are compared with their padding.
const IFNAMSIZ: usize = 16;

/// Where a base chain is attached: what kind of rules it has, and when they run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hook {
    /// `filter` or `nat`.
    pub(crate) kind: &'static str,
    /// `NF_INET_*` hook number.
    pub(crate) number: u32,
    /// Chains of lower priority run first.
    pub(crate) priority: i32,
}

/// After forwarding has been decided.
pub(crate) const FORWARD: Hook = Hook {
    kind: "filter",
    number: 2,
    priority: 0,
};
/// On the way out, where source addresses are translated (`srcnat`).
pub(crate) const POSTROUTING_NAT: Hook = Hook {
    kind: "nat",
    number: 4,
    priority: 100,
};

/// A condition or an action; a rule acts when all conditions before the action hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Expression {
    /// The packet came in by this interface.
    InputInterface(String),
    /// The packet goes out by this interface.
    OutputInterface(String),
    /// The packet goes out by any interface but this.
    OutputInterfaceIsNot(String),
    /// The source address lies in this subnet.
    Source(Ipv4Addr, u8),
    /// The destination is this address.
    Destination(Ipv4Addr),
    /// The protocol above IP has this number.
    Protocol(u8),
    /// The TCP or UDP destination port is not this.
    DestinationPortIsNot(u16),
    /// The packet belongs to a known connection.
    Established,
    /// Give the packet the address of the interface it leaves by.
    Masquerade,
    /// Let it pass this chain.
    Accept,
    /// Drop it.
    Drop,
}

/// A base chain of the table with its rules. Its policy is to accept.
#[derive(Debug, Clone)]
pub(crate) struct Chain {
    pub(crate) name: &'static str,
    pub(crate) hook: Hook,
    pub(crate) rules: Vec<Vec<Expression>>,
}

/// Makes the IPv4 table `name` consist of `chains`, in one transaction: packets see the old rules or the new.
pub(crate) fn replace_table(socket: &mut Socket, name: &str, chains: &[Chain]) -> Result<()> {
    // Deleting a table that does not exist is an error, creating an existing one is not.
    let mut messages = vec![new_table(name), delete_table(name), new_table(name)];
    for chain in chains {
        messages.push(new_chain(name, chain));
        messages.extend(chain.rules.iter().map(|rule| new_rule(name, chain.name, rule)));
    }
    socket.transaction(batch(NFNL_MSG_BATCH_BEGIN), messages, batch(NFNL_MSG_BATCH_END))
}

fn batch(kind: u16) -> Message {
    let [high, low] = NFNL_SUBSYS_NFTABLES.to_be_bytes();
    Message::new("use nf_tables", kind, 0, &[0, 0, high, low])
}

fn message(purpose: String, kind: u16, flags: u16) -> Message {
    Message::new(
        purpose,
        NFNL_SUBSYS_NFTABLES << 8 | kind,
        flags,
        &[NFPROTO_IPV4, 0, 0, 0],
    )
}

fn new_table(name: &str) -> Message {
    let mut message = message(
        format!("create the nf_tables table {name}"),
        NFT_MSG_NEWTABLE,
        NLM_F_CREATE,
    );
    message.text(NFTA_TABLE_NAME, name);
    message
}

fn delete_table(name: &str) -> Message {
    let mut message = message(format!("delete the nf_tables table {name}"), NFT_MSG_DELTABLE, 0);
    message.text(NFTA_TABLE_NAME, name);
    message
}

fn new_chain(table: &str, chain: &Chain) -> Message {
    let purpose = format!("create the nf_tables chain {table} {}", chain.name);
    let mut message = message(purpose, NFT_MSG_NEWCHAIN, NLM_F_CREATE);
    message
        .text(NFTA_CHAIN_TABLE, table)
        .text(NFTA_CHAIN_NAME, chain.name)
        .nested(NFTA_CHAIN_HOOK, |hook| {
            hook.big_endian(NFTA_HOOK_HOOKNUM, chain.hook.number)
                .big_endian(NFTA_HOOK_PRIORITY, chain.hook.priority.cast_unsigned());
        })
        .big_endian(NFTA_CHAIN_POLICY, NF_ACCEPT)
        .text(NFTA_CHAIN_TYPE, chain.hook.kind);
    message
}

fn new_rule(table: &str, chain: &str, rule: &[Expression]) -> Message {
    let purpose = format!("add a rule to the nf_tables chain {table} {chain}");
    let mut message = message(purpose, NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND);
    message
        .text(NFTA_RULE_TABLE, table)
        .text(NFTA_RULE_CHAIN, chain)
        .nested(NFTA_RULE_EXPRESSIONS, |list| {
            rule.iter().for_each(|expression| encode(list, expression));
        });
    message
}

/// Appends what the kernel's little machine has to do for `expression`: usually load something, then compare it.
fn encode(list: &mut Message, expression: &Expression) {
    match expression {
        Expression::InputInterface(name) => {
            load_meta(list, NFT_META_IIFNAME);
            compare(list, NFT_CMP_EQ, &padded(name));
        }
        Expression::OutputInterface(name) => {
            load_meta(list, NFT_META_OIFNAME);
            compare(list, NFT_CMP_EQ, &padded(name));
        }
        Expression::OutputInterfaceIsNot(name) => {
            load_meta(list, NFT_META_OIFNAME);
            compare(list, NFT_CMP_NEQ, &padded(name));
        }
        Expression::Source(subnet, prefix_len) => {
            let mask = !u32::MAX.checked_shr(u32::from(*prefix_len)).unwrap_or(0);
            load_payload(list, NFT_PAYLOAD_NETWORK_HEADER, IPV4_SOURCE, 4);
            mask_register(list, mask.to_be_bytes());
            compare(list, NFT_CMP_EQ, &(u32::from(*subnet) & mask).to_be_bytes());
        }
        Expression::Destination(address) => {
            load_payload(list, NFT_PAYLOAD_NETWORK_HEADER, IPV4_DESTINATION, 4);
            compare(list, NFT_CMP_EQ, &address.octets());
        }
        Expression::Protocol(number) => {
            load_meta(list, NFT_META_L4PROTO);
            compare(list, NFT_CMP_EQ, &[*number]);
        }
        Expression::DestinationPortIsNot(port) => {
            load_payload(list, NFT_PAYLOAD_TRANSPORT_HEADER, DESTINATION_PORT, 2);
            compare(list, NFT_CMP_NEQ, &port.to_be_bytes());
        }
        Expression::Established => {
            element(list, "ct", |ct| {
                ct.big_endian(1, NFT_REG_1).big_endian(2, NFT_CT_STATE);
            });
            mask_register(list, CT_ESTABLISHED_OR_RELATED.to_ne_bytes());
            compare(list, NFT_CMP_NEQ, &[0; 4]);
        }
        Expression::Masquerade => element(list, "masq", |_| ()),
        Expression::Accept => verdict(list, NF_ACCEPT),
        Expression::Drop => verdict(list, NF_DROP),
    }
}

fn element(list: &mut Message, name: &str, fill: impl FnOnce(&mut Message)) {
    list.nested(NFTA_LIST_ELEM, |element| {
        element.text(NFTA_EXPR_NAME, name).nested(NFTA_EXPR_DATA, fill);
    });
}

fn load_meta(list: &mut Message, key: u32) {
    element(list, "meta", |meta| {
        meta.big_endian(1, NFT_REG_1).big_endian(2, key);
    });
}

fn load_payload(list: &mut Message, base: u32, offset: u32, length: u32) {
    element(list, "payload", |payload| {
        payload
            .big_endian(1, NFT_REG_1)
            .big_endian(2, base)
            .big_endian(3, offset)
            .big_endian(4, length);
    });
}

fn mask_register(list: &mut Message, mask: [u8; 4]) {
    element(list, "bitwise", |bitwise| {
        bitwise
            .big_endian(1, NFT_REG_1)
            .big_endian(2, NFT_REG_1)
            .big_endian(3, 4);
        bitwise.nested(4, |value| {
            value.attribute(NFTA_DATA_VALUE, &mask);
        });
        bitwise.nested(5, |value| {
            value.attribute(NFTA_DATA_VALUE, &[0; 4]);
        });
    });
}

fn compare(list: &mut Message, operator: u32, data: &[u8]) {
    element(list, "cmp", |cmp| {
        cmp.big_endian(1, NFT_REG_1)
            .big_endian(2, operator)
            .nested(3, |value| {
                value.attribute(NFTA_DATA_VALUE, data);
            });
    });
}

fn verdict(list: &mut Message, code: u32) {
    element(list, "immediate", |immediate| {
        immediate.big_endian(1, NFT_REG_VERDICT).nested(2, |data| {
            data.nested(NFTA_DATA_VERDICT, |verdict| {
                verdict.big_endian(NFTA_VERDICT_CODE, code);
            });
        });
    });
}

fn padded(name: &str) -> [u8; IFNAMSIZ] {
    let mut padded = [0; IFNAMSIZ];
    // The last byte stays NUL: the kernel's names have at most 15.
    padded
        .iter_mut()
        .take(IFNAMSIZ - 1)
        .zip(name.bytes())
        .for_each(|(place, byte)| *place = byte);
    padded
}

#[cfg(test)]
mod tests {
    use super::super::message::{attribute, attributes, replies, text};
    use super::*;

    #[test]
    fn a_rule_is_a_list_of_named_expressions() {
        let rule = [
            Expression::Source(Ipv4Addr::new(172, 17, 0, 0), 16),
            Expression::OutputInterfaceIsNot("docker0".to_owned()),
            Expression::Masquerade,
        ];
        let (bytes, _) = new_rule("skiff", "postrouting", &rule).finish(1);
        let payload = &replies(&bytes)[0].payload[4..];
        let list = attribute(payload, NFTA_RULE_EXPRESSIONS).unwrap();
        let names: Vec<String> = attributes(list)
            .map(|(_, element)| text(attribute(element, NFTA_EXPR_NAME).unwrap()))
            .collect();
        assert_eq!(names, ["payload", "bitwise", "cmp", "meta", "cmp", "masq"]);
    }

    #[test]
    fn names_are_padded_and_cut() {
        assert_eq!(&padded("docker0"), b"docker0\0\0\0\0\0\0\0\0\0");
        assert_eq!(padded("a-name-that-is-too-long")[15], 0);
    }
}
