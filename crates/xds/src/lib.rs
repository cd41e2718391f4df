//! Delta ADS client and the decoding of workload resources
