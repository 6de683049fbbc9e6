//! What can go wrong, in words that say what to do.

/// Why the rules could not be written, read or confirmed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the program `nft` is missing: install the package nftables")]
    NftMissing,
    #[error("cannot run `nft`")]
    Nft(#[source] std::io::Error),
    #[error(
        "not permitted: give this container the capability NET_ADMIN (securityContext.capabilities), \
         or run it as root in the pod's network namespace"
    )]
    NotPermitted,
    #[error(
        "this kernel cannot redirect connections: it needs nf_tables with nat for IPv4 and IPv6 \
         (modules nf_tables, nft_chain_nat, nft_redir, nf_conntrack); nft says: {0}"
    )]
    NoNat(String),
    #[error("nft refuses the rules: {0}")]
    Refused(String),
    #[error("there are no redirection rules here: run heddle-init without --check")]
    Absent,
    #[error("nft answers with something that is not its JSON: {0}")]
    NotJson(String),
    #[error("the redirection rules differ from what they should be:\n{0}")]
    Differ(String),
}
