package main

// Packets, messages and the handshake: what passes between a client and a frontend (client protocol 2, 3 and 5).

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

const (
	packetHandshake    byte = 1
	packetHandshakeAck byte = 2
	packetHeartbeat    byte = 3
	packetData         byte = 4
	packetKick         byte = 5

	packetHeaderBytes  = 4
	packetBodyBytesMax = 0xffffff
)

type packet struct {
	kind byte
	body []byte
}

func encodePacket(kind byte, body []byte) ([]byte, error) {
	if len(body) > packetBodyBytesMax {
		return nil, fmt.Errorf("packet of %d bytes is too large", len(body))
	}
	out := make([]byte, packetHeaderBytes, packetHeaderBytes+len(body))
	binary.BigEndian.PutUint32(out, uint32(len(body)))
	out[0] = kind
	return append(out, body...), nil
}

// readPacket reads exactly one packet and not a byte more.
func readPacket(in io.Reader) (packet, error) {
	header := make([]byte, packetHeaderBytes)
	if _, err := io.ReadFull(in, header); err != nil {
		return packet{}, err
	}
	kind := header[0]
	if kind < packetHandshake || kind > packetKick {
		return packet{}, fmt.Errorf("wrong packet type %d", kind)
	}
	header[0] = 0
	body := make([]byte, binary.BigEndian.Uint32(header))
	if _, err := io.ReadFull(in, body); err != nil {
		return packet{}, fmt.Errorf("body of packet type %d: %w", kind, err)
	}
	return packet{kind: kind, body: body}, nil
}

const (
	messageRequest  byte = 0
	messageNotify   byte = 1
	messageResponse byte = 2
	messagePush     byte = 3

	flagRouteCode  byte = 0x01
	flagCompressed byte = 0x10
	flagError      byte = 0x20
)

type message struct {
	kind    byte
	id      uint64
	route   string
	data    []byte
	isError bool
}

func (m message) hasID() bool    { return m.kind == messageRequest || m.kind == messageResponse }
func (m message) hasRoute() bool { return m.kind != messageResponse }

// encodeMessage writes routes as text and never compresses: both are the sender's choice.
func encodeMessage(m message) ([]byte, error) {
	if len(m.route) > 255 {
		return nil, errors.New("route is longer than 255 bytes")
	}
	flag := m.kind << 1
	if m.isError {
		flag |= flagError
	}
	out := []byte{flag}
	if m.hasID() {
		out = binary.AppendUvarint(out, m.id)
	}
	if m.hasRoute() {
		out = append(out, byte(len(m.route)))
		out = append(out, m.route...)
	}
	return append(out, m.data...), nil
}

// decodeMessage takes routes as text or as a code of the dictionary, and inflates the payload.
func decodeMessage(body []byte, routes map[uint16]string) (message, error) {
	if len(body) < 2 {
		return message{}, errors.New("message is shorter than two bytes")
	}
	flag, rest := body[0], body[1:]
	decoded := message{kind: flag >> 1 & 0x07, isError: flag&flagError != 0}
	if decoded.kind > messagePush {
		return message{}, fmt.Errorf("wrong message type %d", decoded.kind)
	}
	if decoded.hasID() {
		id, taken := binary.Uvarint(rest)
		if taken <= 0 {
			return message{}, errors.New("message id does not end")
		}
		decoded.id, rest = id, rest[taken:]
	}
	if decoded.hasRoute() {
		var err error
		if decoded.route, rest, err = decodeRoute(flag, rest, routes); err != nil {
			return message{}, err
		}
	}
	if flag&flagCompressed != 0 {
		var err error
		if rest, err = inflate(rest); err != nil {
			return message{}, fmt.Errorf("payload: %w", err)
		}
	}
	decoded.data = rest
	return decoded, nil
}

func decodeRoute(flag byte, rest []byte, routes map[uint16]string) (string, []byte, error) {
	if flag&flagRouteCode != 0 {
		if len(rest) < 2 {
			return "", nil, errors.New("route code is cut off")
		}
		route, isKnown := routes[binary.BigEndian.Uint16(rest)]
		if !isKnown {
			return "", nil, errors.New("route code is not in the dictionary")
		}
		return route, rest[2:], nil
	}
	if len(rest) == 0 || len(rest) < 1+int(rest[0]) {
		return "", nil, errors.New("route is cut off")
	}
	end := 1 + int(rest[0])
	return string(rest[1:end]), rest[end:], nil
}

func inflate(compressed []byte) ([]byte, error) {
	reader, err := zlib.NewReader(bytes.NewReader(compressed))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(reader, packetBodyBytesMax))
}

type handshakeSys struct {
	// An integer on purpose: Pitaya's Go client fails on a heartbeat with a fraction, so this one does too.
	Heartbeat  int               `json:"heartbeat"`
	Dict       map[string]uint16 `json:"dict"`
	Serializer string            `json:"serializer"`
}

type handshakeResponse struct {
	Code int          `json:"code"`
	Sys  handshakeSys `json:"sys"`
}

func decodeHandshakeResponse(body []byte) (handshakeResponse, error) {
	var decoded handshakeResponse
	if len(body) >= 2 && body[0] == 0x78 {
		inflated, err := inflate(body)
		if err != nil {
			return decoded, err
		}
		body = inflated
	}
	err := json.Unmarshal(body, &decoded)
	return decoded, err
}
