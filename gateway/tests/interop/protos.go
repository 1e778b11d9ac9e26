package main

// The messages between servers (cluster protocol 3), written and read field by field.

import (
	"fmt"
	"sort"

	"google.golang.org/protobuf/encoding/protowire"
)

const (
	rpcSys  uint64 = 0
	rpcUser uint64 = 1
)

type sessionRecord struct {
	id   int64
	uid  string
	data []byte
}

type callMessage struct {
	id    uint64
	route string
	data  []byte
	kind  uint64
}

type request struct {
	rpc        uint64
	session    *sessionRecord
	message    *callMessage
	frontendID string
	metadata   []byte
}

type callError struct {
	code     string
	text     string
	metadata map[string]string
}

func (e *callError) Error() string { return e.code + ": " + e.text }

type response struct {
	data []byte
	err  *callError
}

type push struct {
	route string
	uid   string
	data  []byte
}

type bindMessage struct {
	uid        string
	frontendID string
}

func appendVarint(out []byte, number protowire.Number, value uint64) []byte {
	if value == 0 {
		return out
	}
	return protowire.AppendVarint(protowire.AppendTag(out, number, protowire.VarintType), value)
}

func appendText[T ~string | ~[]byte](out []byte, number protowire.Number, value T) []byte {
	if len(value) == 0 {
		return out
	}
	return appendNested(out, number, []byte(value))
}

// appendNested writes the field even when it is empty: the presence of a message says something.
func appendNested(out []byte, number protowire.Number, value []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(out, number, protowire.BytesType), value)
}

func (s sessionRecord) encode() []byte {
	out := appendVarint(nil, 1, uint64(s.id))
	out = appendText(out, 2, s.uid)
	return appendText(out, 3, s.data)
}

func (m callMessage) encode() []byte {
	out := appendVarint(nil, 1, m.id)
	out = appendText(out, 2, m.route)
	out = appendText(out, 3, m.data)
	return appendVarint(out, 5, m.kind)
}

func (r request) encode() []byte {
	out := appendVarint(nil, 1, r.rpc)
	if r.session != nil {
		out = appendNested(out, 2, r.session.encode())
	}
	if r.message != nil {
		out = appendNested(out, 3, r.message.encode())
	}
	out = appendText(out, 4, r.frontendID)
	return appendText(out, 5, r.metadata)
}

func (e callError) encode() []byte {
	out := appendText(appendText(nil, 1, e.code), 2, e.text)
	keys := make([]string, 0, len(e.metadata))
	for key := range e.metadata {
		keys = append(keys, key)
	}
	sort.Strings(keys)
	for _, key := range keys {
		entry := appendText(appendText(nil, 1, key), 2, e.metadata[key])
		out = appendNested(out, 3, entry)
	}
	return out
}

func (r response) encode() []byte {
	out := appendText(nil, 1, r.data)
	if r.err != nil {
		out = appendNested(out, 2, r.err.encode())
	}
	return out
}

func (p push) encode() []byte {
	return appendText(appendText(appendText(nil, 1, p.route), 2, p.uid), 3, p.data)
}

func (b bindMessage) encode() []byte {
	return appendText(appendText(nil, 1, b.uid), 2, b.frontendID)
}

// eachField calls take for every field; unknown ones are for take to ignore.
func eachField(encoded []byte, take func(number protowire.Number, varint uint64, bytes []byte) error) error {
	for len(encoded) > 0 {
		number, wireType, tagBytes := protowire.ConsumeTag(encoded)
		if tagBytes < 0 {
			return protowire.ParseError(tagBytes)
		}
		encoded = encoded[tagBytes:]
		var varint uint64
		var value []byte
		taken := 0
		switch wireType {
		case protowire.VarintType:
			varint, taken = protowire.ConsumeVarint(encoded)
		case protowire.BytesType:
			value, taken = protowire.ConsumeBytes(encoded)
		default:
			taken = protowire.ConsumeFieldValue(number, wireType, encoded)
		}
		if taken < 0 {
			return protowire.ParseError(taken)
		}
		encoded = encoded[taken:]
		if err := take(number, varint, value); err != nil {
			return fmt.Errorf("field %d: %w", number, err)
		}
	}
	return nil
}

func decodeSession(encoded []byte) (sessionRecord, error) {
	var decoded sessionRecord
	err := eachField(encoded, func(number protowire.Number, varint uint64, bytes []byte) error {
		switch number {
		case 1:
			decoded.id = int64(varint)
		case 2:
			decoded.uid = string(bytes)
		case 3:
			decoded.data = bytes
		}
		return nil
	})
	return decoded, err
}

func decodeCallMessage(encoded []byte) (callMessage, error) {
	var decoded callMessage
	err := eachField(encoded, func(number protowire.Number, varint uint64, bytes []byte) error {
		switch number {
		case 1:
			decoded.id = varint
		case 2:
			decoded.route = string(bytes)
		case 3:
			decoded.data = bytes
		case 5:
			decoded.kind = varint
		}
		return nil
	})
	return decoded, err
}

func decodeRequest(encoded []byte) (request, error) {
	var decoded request
	err := eachField(encoded, func(number protowire.Number, varint uint64, bytes []byte) error {
		switch number {
		case 1:
			decoded.rpc = varint
		case 2:
			session, err := decodeSession(bytes)
			decoded.session = &session
			return err
		case 3:
			message, err := decodeCallMessage(bytes)
			decoded.message = &message
			return err
		case 4:
			decoded.frontendID = string(bytes)
		case 5:
			decoded.metadata = bytes
		}
		return nil
	})
	return decoded, err
}

func decodeCallError(encoded []byte) (callError, error) {
	decoded := callError{}
	err := eachField(encoded, func(number protowire.Number, _ uint64, bytes []byte) error {
		switch number {
		case 1:
			decoded.code = string(bytes)
		case 2:
			decoded.text = string(bytes)
		case 3:
			key, value, err := decodeMapEntry(bytes)
			if decoded.metadata == nil {
				decoded.metadata = map[string]string{}
			}
			decoded.metadata[key] = value
			return err
		}
		return nil
	})
	return decoded, err
}

func decodeMapEntry(encoded []byte) (key, value string, err error) {
	err = eachField(encoded, func(number protowire.Number, _ uint64, bytes []byte) error {
		switch number {
		case 1:
			key = string(bytes)
		case 2:
			value = string(bytes)
		}
		return nil
	})
	return key, value, err
}

func decodeResponse(encoded []byte) (response, error) {
	var decoded response
	err := eachField(encoded, func(number protowire.Number, _ uint64, bytes []byte) error {
		switch number {
		case 1:
			decoded.data = bytes
		case 2:
			failure, err := decodeCallError(bytes)
			decoded.err = &failure
			return err
		}
		return nil
	})
	return decoded, err
}

func decodePush(encoded []byte) (push, error) {
	var decoded push
	err := eachField(encoded, func(number protowire.Number, _ uint64, bytes []byte) error {
		switch number {
		case 1:
			decoded.route = string(bytes)
		case 2:
			decoded.uid = string(bytes)
		case 3:
			decoded.data = bytes
		}
		return nil
	})
	return decoded, err
}

// decodeTexts reads a message whose fields 1 and 2 are texts: BindMsg, and with one field KickMsg and Doc.
func decodeTexts(encoded []byte) (first, second string, err error) {
	return decodeMapEntry(encoded)
}

// encodeFirst writes a message whose only field is a text with number 1: KickMsg and Doc.
func encodeFirst(value string) []byte { return appendText(nil, 1, value) }
