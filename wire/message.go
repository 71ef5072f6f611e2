package wire

// The tables as messages: which number each type has, and its checks.

// Table implements [Message].
func (AppIdentity) Table() int { return 1 }

// Validate implements [Message].
func (m AppIdentity) Validate(p Profile) error { return nil }

// Table implements [Message].
func (AppIdentityReply) Table() int { return 2 }

// Validate implements [Message].
func (m AppIdentityReply) Validate(p Profile) error { return nil }

// Table implements [Message].
func (BusinessRequest) Table() int { return 3 }

// Validate implements [Message].
func (m BusinessRequest) Validate(p Profile) error { return nil }

// Table implements [Message].
func (DeviceIdentity) Table() int { return 4 }

// Validate implements [Message].
func (m DeviceIdentity) Validate(p Profile) error { return nil }

// Table implements [Message].
func (Reply) Table() int { return 5 }

// Validate implements [Message].
func (m Reply) Validate(p Profile) error { return nil }

// Table implements [Message].
func (GrantList) Table() int { return 6 }

// Validate implements [Message].
func (m GrantList) Validate(p Profile) error { return nil }

// Table implements [Message].
func (Grant) Table() int { return 7 }

// Validate implements [Message].
func (m Grant) Validate(p Profile) error { return nil }

// Table implements [Message].
func (PolicyList) Table() int { return 8 }

// Validate implements [Message].
func (m PolicyList) Validate(p Profile) error { return nil }

// Table implements [Message].
func (Policy) Table() int { return 9 }

// Validate implements [Message].
func (m Policy) Validate(p Profile) error { return nil }

// Table implements [Message].
func (GatewayStatus) Table() int { return 10 }

// Validate implements [Message].
func (m GatewayStatus) Validate(p Profile) error { return nil }

// Table implements [Message].
func (GatewayAlert) Table() int { return 11 }

// Validate implements [Message].
func (m GatewayAlert) Validate(p Profile) error { return nil }

// Table implements [Message].
func (AccessRequest) Table() int { return 12 }

// Validate implements [Message].
func (m AccessRequest) Validate(p Profile) error { return nil }

// Table implements [Message].
func (AccessReply) Table() int { return 13 }

// Validate implements [Message].
func (m AccessReply) Validate(p Profile) error { return nil }

// Table implements [Message].
func (Renewal) Table() int { return 14 }

// Validate implements [Message].
func (m Renewal) Validate(p Profile) error { return nil }

// Table implements [Message].
func (Notice) Table() int { return 15 }

// Validate implements [Message].
func (m Notice) Validate(p Profile) error { return nil }

// Table implements [Message].
func (Authentication) Table() int { return 16 }

// Validate implements [Message].
func (m Authentication) Validate(p Profile) error { return nil }

// Table implements [Message].
func (Factor) Table() int { return 17 }

// Validate implements [Message].
func (m Factor) Validate(p Profile) error { return nil }

// Table implements [Message].
func (AuthenticationReply) Table() int { return 18 }

// Validate implements [Message].
func (m AuthenticationReply) Validate(p Profile) error { return nil }

// Table implements [Message].
func (ResourceList) Table() int { return 19 }

// Validate implements [Message].
func (m ResourceList) Validate(p Profile) error { return nil }

// Table implements [Message].
func (Resource) Table() int { return 20 }

// Validate implements [Message].
func (m Resource) Validate(p Profile) error { return nil }

// Table implements [Message].
func (AgentStatus) Table() int { return 21 }

// Validate implements [Message].
func (m AgentStatus) Validate(p Profile) error { return nil }

// Table implements [Message].
func (AgentAlert) Table() int { return 22 }

// Validate implements [Message].
func (m AgentAlert) Validate(p Profile) error { return nil }

