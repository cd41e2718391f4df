//! Two messages of the contract that the generated types leave out. Names and numbers are those of
//! `xds.type.matcher.v3.IPMatcher` and `udpa.type.v1.TypedStruct` (equal to `xds.type.v3`'s).

use envoy_types::pb::google::protobuf::Struct;
use envoy_types::pb::xds::core::v3::CidrRange;
use envoy_types::pb::xds::r#type::matcher::v3::matcher::OnMatch;

/// Chooses by address range, most specific first.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct IpMatcher {
    #[prost(message, repeated, tag = "1")]
    pub(crate) range_matchers: Vec<IpRangeMatcher>,
}

impl prost::Name for IpMatcher {
    const NAME: &'static str = "IPMatcher";
    const PACKAGE: &'static str = "xds.type.matcher.v3";
}

/// Ranges that go the same way.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct IpRangeMatcher {
    #[prost(message, repeated, tag = "1")]
    pub(crate) ranges: Vec<CidrRange>,
    #[prost(message, optional, tag = "2")]
    pub(crate) on_match: Option<OnMatch>,
    /// Do not look at wider ranges when this one leads nowhere.
    #[prost(bool, tag = "3")]
    pub(crate) exclusive: bool,
}

/// A message as named JSON.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct TypedStruct {
    #[prost(string, tag = "1")]
    pub(crate) type_url: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) value: Option<Struct>,
}
