package wire

// The tables as messages: what each type needs for [Message], Decode and the
// lists. The rules themselves stand beside the types.

// Table returns 1.
func (AppIdentity) Table() int { return 1 }

// Validate implements [Message].
func (m AppIdentity) Validate(p Profile) error { return appIdentityTable.validate(&m, p) }

func (m *AppIdentity) decode(r *reader) error { return appIdentityTable.decode(r, m) }

// Table returns 2.
func (AppIdentityReply) Table() int { return 2 }

// Validate implements [Message].
func (m AppIdentityReply) Validate(p Profile) error { return appIdentityReplyTable.validate(&m, p) }

func (m *AppIdentityReply) decode(r *reader) error { return appIdentityReplyTable.decode(r, m) }

// Table returns 3.
func (BusinessRequest) Table() int { return 3 }

// Validate implements [Message].
func (m BusinessRequest) Validate(p Profile) error { return businessRequestTable.validate(&m, p) }

func (m *BusinessRequest) decode(r *reader) error { return businessRequestTable.decode(r, m) }

// Table returns 4.
func (DeviceIdentity) Table() int { return 4 }

// Validate implements [Message].
func (m DeviceIdentity) Validate(p Profile) error { return deviceIdentityTable.validate(&m, p) }

func (m *DeviceIdentity) decode(r *reader) error { return deviceIdentityTable.decode(r, m) }

// Table returns 5.
func (Reply) Table() int { return 5 }

// Validate implements [Message].
func (m Reply) Validate(p Profile) error { return replyTable.validate(&m, p) }

func (m *Reply) decode(r *reader) error { return replyTable.decode(r, m) }

// Table returns 6.
func (GrantList) Table() int { return 6 }

// Validate implements [Message].
func (m GrantList) Validate(p Profile) error { return grantListTable.validate(&m, p) }

func (m *GrantList) decode(r *reader) error { return grantListTable.decode(r, m) }

// Table returns 7.
func (Grant) Table() int { return 7 }

// Validate implements [Message].
func (m Grant) Validate(p Profile) error { return grantTable.validate(&m, p) }

func (m *Grant) decode(r *reader) error { return grantTable.decode(r, m) }

func (m *Grant) rowID(p Profile) string { return grantTable.id(m, p) }

// Table returns 8.
func (PolicyList) Table() int { return 8 }

// Validate implements [Message].
func (m PolicyList) Validate(p Profile) error { return policyListTable.validate(&m, p) }

func (m *PolicyList) decode(r *reader) error { return policyListTable.decode(r, m) }

// Table returns 9.
func (Policy) Table() int { return 9 }

// Validate implements [Message].
func (m Policy) Validate(p Profile) error { return policyTable.validate(&m, p) }

func (m *Policy) decode(r *reader) error { return policyTable.decode(r, m) }

func (m *Policy) rowID(p Profile) string { return policyTable.id(m, p) }

// Table returns 10.
func (GatewayStatus) Table() int { return 10 }

// Validate implements [Message].
func (m GatewayStatus) Validate(p Profile) error { return gatewayStatusTable.validate(&m, p) }

func (m *GatewayStatus) decode(r *reader) error { return gatewayStatusTable.decode(r, m) }

// Table returns 11.
func (GatewayAlert) Table() int { return 11 }

// Validate implements [Message].
func (m GatewayAlert) Validate(p Profile) error { return gatewayAlertTable.validate(&m, p) }

func (m *GatewayAlert) decode(r *reader) error { return gatewayAlertTable.decode(r, m) }

// Table returns 12.
func (AccessRequest) Table() int { return 12 }

// Validate implements [Message].
func (m AccessRequest) Validate(p Profile) error { return accessRequestTable.validate(&m, p) }

func (m *AccessRequest) decode(r *reader) error { return accessRequestTable.decode(r, m) }

// Table returns 13.
func (AccessReply) Table() int { return 13 }

// Validate implements [Message].
func (m AccessReply) Validate(p Profile) error { return accessReplyTable.validate(&m, p) }

func (m *AccessReply) decode(r *reader) error { return accessReplyTable.decode(r, m) }

// Table returns 14.
func (Renewal) Table() int { return 14 }

// Validate implements [Message].
func (m Renewal) Validate(p Profile) error { return renewalTable.validate(&m, p) }

func (m *Renewal) decode(r *reader) error { return renewalTable.decode(r, m) }

// Table returns 15.
func (Notice) Table() int { return 15 }

// Validate implements [Message].
func (m Notice) Validate(p Profile) error { return noticeTable.validate(&m, p) }

func (m *Notice) decode(r *reader) error { return noticeTable.decode(r, m) }

// Table returns 16.
func (Authentication) Table() int { return 16 }

// Validate implements [Message].
func (m Authentication) Validate(p Profile) error { return authenticationTable.validate(&m, p) }

func (m *Authentication) decode(r *reader) error { return authenticationTable.decode(r, m) }

// Table returns 17.
func (Factor) Table() int { return 17 }

// Validate implements [Message].
func (m Factor) Validate(p Profile) error { return factorTable.validate(&m, p) }

func (m *Factor) decode(r *reader) error { return factorTable.decode(r, m) }

// Table returns 18.
func (AuthenticationReply) Table() int { return 18 }

// Validate implements [Message].
func (m AuthenticationReply) Validate(p Profile) error {
	return authenticationReplyTable.validate(&m, p)
}

func (m *AuthenticationReply) decode(r *reader) error { return authenticationReplyTable.decode(r, m) }

// Table returns 19.
func (ResourceList) Table() int { return 19 }

// Validate implements [Message].
func (m ResourceList) Validate(p Profile) error { return resourceListTable.validate(&m, p) }

func (m *ResourceList) decode(r *reader) error { return resourceListTable.decode(r, m) }

// Table returns 20.
func (Resource) Table() int { return 20 }

// Validate implements [Message].
func (m Resource) Validate(p Profile) error { return resourceTable.validate(&m, p) }

func (m *Resource) decode(r *reader) error { return resourceTable.decode(r, m) }

func (m *Resource) rowID(p Profile) string { return resourceTable.id(m, p) }

// Table returns 21.
func (AgentStatus) Table() int { return 21 }

// Validate implements [Message].
func (m AgentStatus) Validate(p Profile) error { return agentStatusTable.validate(&m, p) }

func (m *AgentStatus) decode(r *reader) error { return agentStatusTable.decode(r, m) }

// Table returns 22.
func (AgentAlert) Table() int { return 22 }

// Validate implements [Message].
func (m AgentAlert) Validate(p Profile) error { return agentAlertTable.validate(&m, p) }

func (m *AgentAlert) decode(r *reader) error { return agentAlertTable.decode(r, m) }
